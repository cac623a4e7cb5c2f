"""A tiny SAM from segment-anything's own modules."""

from functools import partial

import torch
from segment_anything import modeling

IMAGE_SIZE = 128
PATCH_SIZE = 8
_GRID = IMAGE_SIZE // PATCH_SIZE
_WIDTH = 128
_PROMPT_WIDTH = 64


def build_tiny_sam() -> modeling.Sam:
    """An untrained SAM for images of 128 pixels, in evaluation mode, of 1.1 million parameters.

    Its input, RGB in [0, 255] with prompts, is that of the published networks; its low-resolution
    masks have 64 pixels a side.
    """
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            embed_dim=_WIDTH,
            depth=4,
            num_heads=4,
            mlp_ratio=3,
            out_chans=_PROMPT_WIDTH,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=8,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=_PROMPT_WIDTH,
            image_embedding_size=(_GRID, _GRID),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=8,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=_PROMPT_WIDTH, mlp_dim=256, num_heads=4
            ),
            transformer_dim=_PROMPT_WIDTH,
            iou_head_hidden_dim=64,
        ),
    )
    return sam.eval()
