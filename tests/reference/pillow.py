"""RandAugment's operations and Cutout by Pillow, one image at a time."""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

CUTOUT_COLOUR = (125, 123, 114)


def to_pillow(image):
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def pillow(image, name, v):
    image = to_pillow(image)
    affine = {
        "ShearX": (1, v, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, v, 1, 0),
        "TranslateX": (1, 0, v * image.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, v * image.height),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(v)
    return {
        "AutoContrast": ImageOps.autocontrast,
        "Equalize": ImageOps.equalize,
        "Identity": lambda image: image,
        "Posterize": lambda image: ImageOps.posterize(image, int(v)),
        "Rotate": lambda image: image.rotate(v),
        "Solarize": lambda image: ImageOps.solarize(image, v),
    }[name](image)


def pillow_cutout(image, size, centre):
    if size == 0:
        return image
    changed = to_pillow(image)
    height, width, channels = image.shape
    side = size * width
    left, top = (int(max(0, x - side / 2)) for x in centre)
    corners = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(changed).rectangle(corners, CUTOUT_COLOUR if channels == 3 else 121)
    return np.asarray(changed).reshape(image.shape)
