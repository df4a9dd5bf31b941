"""OpenCV on one thread (loaders and ranks are processes already), or a message that says how to get
it.
"""

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be loaded ({error}). On a machine without the system library libGL, "
        "`pip install --force-reinstall --no-deps opencv-python-headless` brings a build that does without it"
    ) from error

cv2.setNumThreads(0)

__all__ = ["cv2"]
