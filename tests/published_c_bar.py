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
