"""What the public generator of ImageNet-C-bar (facebookresearch/augmentation-corruption, commit
ba4d5a5) makes of `photo_like(1, side)`: numbers measured by running it beside this project.
"""

from __future__ import annotations

# base85 of the pixels [3::6, 3::6] at 32 px, severity 3 of "cifar", with the test's random numbers
# in place of the generator's own
VALUES: dict[str, str] = {
    "blue_noise_sample": "zN*pK!D76~P+!c$EzrEH*JCixIXmCTDb2$=*EKKdP7KY;QrVf0%ptzdl1JaznaY~s#yG~fn8u;|x6pgfw=2BJg?EG2IB_`",
    "brownish_noise": "*Mjxm#cZJ2b4q&UL6X6@&4vx@aSG=A6!ZCC=QKa&rxDEmF1@2T%~7}LhJ(ldwEx<++G~)1#Lbz`#k-Bo!d1SS`l~qaKQCn",
    "caustic_refraction": "(X`ynu2i?gKVr|uDa^Q$%R+_qWH;NyC(FS$(Je3PP6fupRL+5{{YuT*pk4Cdlf`4n&@;-soV$(cs<&+S+D*~Ijd+CDH*h!",
    "checkerboard_cutout": "fPjF2fPlQnP+!c$EzrEH*JCixIXmCTDb2$=*EKKdPJn=bfPjF2fPlWwl7N7KnaY~s#yG~fn8u;|x6pgfw<~~vfPjF2IB_`",
    "cocentric_sine_waves": "$FthZwN|*qOkK*s7rLgm<8L0lCrIqoB*?xq&@MjtT>!VVW9q7PvInKMc~I!#oXwr}+Dz5Qr_QPWugG)R!8O(4o?vXhAXy;",
    "inverse_sparkles": "+|uUc)RM{4a$(HFQP{`L=c8cSXF%V{Db2$=*ENXqnpxf3QrVfL)lAspzMk&tz1+R%)M?erwA8u$-RQvV;;i!Y=exn`jIE3",
    "perlin_noise": "#<<ki$Ah)LX@t_tO~JCS&U{V2R9(@*PQtrf%UE9GbV<_CbkwGq#Y@A_qjccgoxh#l%Vx~NtG=Y<z0Q)xwNbdhk%o`SS%O*",
    "plasma_noise": "fv&>4#BsyJW?;#~D8a;U+%^T(BR}KMM#sKXvKSHTA`H5TXvlw^p#YPPSt7r+g0N%dlMt19UYu*orH_ctdONy|jdx6;4{%W",
    "single_frequency_greyscale": "(!S-#uu;d;TUo}vEYG{1%2qbjKRVvWBgef(;y^I#PY}`0N6wC(+c2uTeo*M)io1*S*-NjXf!(<Oq`he5%s`~DZH}7lB3mN",
    "sparkles": "!?D!b#A?9HTZh=v{QmyQ<(fg$Nlf9)N7Tzu+e`od|0L4SYu>2;|NqO_s9oaRqtB${%0|(}tkJaly3&Esx-`DZiGPdOLwQ6",
}

# Of so many draws at 32 px, at severities 1, 3 and 5: mean and deviation of an image's mean change;
# means of the three channels, and their deviations; mean variance of a pixel; power in six rings of
# spatial frequency, without the mean image
DRAWS = {"cifar": 200, "imagenet": 120}
MEASURED: dict[str, dict[str, tuple[str, str, str]]] = {
    "cifar": {
        "blue_noise_sample": (
            "1.609 0.452 128.3 187 124.5 0.426 0.577 0.42 279.2 5.73e6 1.89e7 2.93e7 4.54e7 5.5e7 1.38e8",
            "4.643 0.642 125.7 183.1 122 0.606 0.85 0.599 792.7 1.53e7 5.16e7 7.76e7 1.28e8 1.55e8 4.04e8",
            "15.84 1 115.9 168.8 112.4 0.982 1.24 0.989 2492 3.73e7 1.32e8 2.12e8 3.64e8 4.78e8 1.39e9",
        ),
        "brownish_noise": (
            "15.32 1.23 131.4 187.6 126.3 10.5 11 10.3 358.6 2.05e8 3.76e7 7.82e6 3.59e6 1.76e6 2.05e6",
            "32.12 2.52 129.2 186 127 21 22.6 23.1 1550 8.61e8 1.7e8 3.67e7 1.72e7 9.25e6 1.19e7",
            "39.26 2.75 128 186 125.8 28.6 24.1 26.6 2296 1.3e9 2.57e8 5.62e7 2.64e7 1.41e7 1.79e7",
        ),
        "caustic_refraction": (
            "8.735 0.632 129.2 188.6 125.2 0.3 0.23 0.488 95.94 1.31e7 4.62e7 2.2e7 7.13e6 4.08e6 8.02e6",
            "15.89 1.07 129.1 188.5 125.2 0.589 0.456 0.817 307 4e7 1.52e8 7.19e7 2.31e7 1.28e7 2.17e7",
            "26.85 1.96 129 187.3 125.1 0.957 0.861 1.26 869.2 1.21e8 4.38e8 2.05e8 6.68e7 3.4e7 4.57e7",
        ),
        "checkerboard_cutout": (
            "3.132 2.15 129.6 185.9 126 2.09 2.42 1.86 227.6 6.92e7 8.39e7 2.91e7 1.69e7 1.3e7 2.18e7",
            "9.288 3.22 129.6 179.8 126.3 3.23 3.61 2.65 600.1 1.69e8 2.21e8 8.18e7 4.85e7 3.64e7 6.15e7",
            "15.15 3.78 129.1 173.9 126.3 3.54 4.18 3.01 870.4 2.12e8 3.25e8 1.33e8 7.47e7 5.83e7 9.51e7",
        ),
        "cocentric_sine_waves": (
            "4.787 0.0635 129.3 188.5 125.4 0.132 0.132 0.132 30.49 4.15e5 1.49e6 2.48e6 4.47e6 7.28e6 1.58e7",
            "12.67 0.149 129.2 188.4 125.4 0.405 0.405 0.404 213.6 3.15e6 1.03e7 1.63e7 3.23e7 5.09e7 1.11e8",
            "15.77 0.188 129.3 188.4 125.4 0.49 0.493 0.493 331.4 4.85e6 1.68e7 2.54e7 4.68e7 7.95e7 1.74e8",
        ),
        "inverse_sparkles": (
            "19.35 0.997 152 201.4 149.2 1.58 0.924 1.26 154.5 6.8e7 1.4e7 1.1e7 1.41e7 1.55e7 3.76e7",
            "32.7 1.86 167.3 210.2 165.2 2.89 1.83 2.37 391.6 2.44e8 4.27e7 2.35e7 2.51e7 2.28e7 4.62e7",
            "48.15 2.39 184.8 220.4 183.8 4.17 2.66 2.92 823.7 5.84e8 8.36e7 3.92e7 4.12e7 3.62e7 6.83e7",
        ),
        "perlin_noise": (
            "14.59 0.261 143.1 188.7 140.1 0.564 0.563 0.564 35.36 3.81e6 1.04e7 9.27e6 6.11e6 3.07e6 4.12e6",
            "18.49 0.323 146.8 188.9 144.1 0.709 0.709 0.709 56.48 6.12e6 1.63e7 1.51e7 9.85e6 4.8e6 6.55e6",
            "28.08 0.469 155.8 189 153.7 1.05 1.05 1.05 128.6 1.4e7 3.68e7 3.42e7 2.26e7 1.11e7 1.5e7",
        ),
        "plasma_noise": (
            "10.3 0.793 122.2 178.9 120 1.42 1.78 1.16 80.68 5.14e7 1.6e7 5.12e6 3.3e6 2.43e6 4.02e6",
            "26.99 2.1 110.8 163.1 111.2 3.51 4.98 3.08 561 3.67e8 1.05e8 3.4e7 2.28e7 1.64e7 2.69e7",
            "33.3 2.72 106.7 157.1 108.1 4.5 6.39 3.69 880.5 5.66e8 1.72e8 5.39e7 3.59e7 2.58e7 4.29e7",
        ),
        "single_frequency_greyscale": (
            "7.413 0.598 129.1 188.3 125.2 1.1 1.1 1.1 67.58 6.02e6 1.1e7 1.1e7 1.2e7 8.28e6 2.13e7",
            "14.85 0.908 129.3 188.4 125.4 3.45 3.44 3.45 271.7 2.57e7 3.45e7 5.36e7 3.23e7 5.08e7 7.56e7",
            "35.52 1.12 128.4 185.7 124.7 5.46 5.5 5.45 1555 1.89e8 2.85e8 2.32e8 2.3e8 2.41e8 4.22e8",
        ),
        "sparkles": (
            "7.948 0.663 139.2 193.7 135.6 1.5 0.744 1.27 356.5 1.24e8 1.36e8 6.49e7 2.97e7 9.49e6 8.23e6",
            "20.88 1.69 154.4 201.4 151.4 3.22 1.6 2.57 873.2 4.86e8 2.89e8 5.12e7 2.32e7 2.15e7 3.75e7",
            "27.91 2.39 162.9 205.8 159.6 4.62 2.1 3.58 1103 7.13e8 2.84e8 4.12e7 3.21e7 2.59e7 4.72e7",
        ),
    },
}
