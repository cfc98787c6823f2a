"""SAM's mask decoder, those of HQ-SAM and H-SAM, and the thesis's heads made of them."""

from __future__ import annotations

import re
from typing import Any

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.hqsam import HQMaskDecoder, HQSAMHead
from nnunet_fm.heads.hsam import TwoStageHead
from nnunet_fm.heads.hsam_decoder import RefiningDecoder, cross_first_transformer
from nnunet_fm.heads.sam_base import SAM_PATCH, SAMHead, sam_neck
from nnunet_fm.heads.sam_decoder import BatchedMaskDecoder, Decoded, Embedded, TwoWay, dot
from tests.parity.cases import Case, NotSupportedError

FIXED = {"transformer_dim": 256, "iou_head_depth": 3, "iou_head_hidden_dim": 256}
TRANSFORMER = {"depth": "2", "embedding_dim": "256", "mlp_dim": "2048", "num_heads": "8"}
"""What official decoders can vary and published ones do not."""


def mask_decoder(case: Case) -> dict[str, Tensor]:
    """``masks`` of all tokens, ``iou_pred``, and positions, ``dense_pe``."""
    (image,) = case.inputs()
    decoder = BatchedMaskDecoder(_masks(case), TwoWay())
    case.fill(decoder, "mask_decoder")
    embedded = _embedded(case, image)
    decoded = decoder.eval()(embedded)
    return {
        "masks": dot(decoder.kernels(decoded.tokens), decoded.upscaled),
        "iou_pred": _iou(decoder, embedded),
        "dense_pe": embedded.positions,
    }


def hq_mask_decoder(case: Case) -> dict[str, Tensor]:
    """``masks_all`` with that of high quality last, ``hq_features``, ``iou_pred``, and what is returned officially."""
    image, early = case.inputs()
    early = early.permute(0, 3, 1, 2)
    decoder = HQMaskDecoder(_masks(case), case.constructor["vit_dim"])
    case.fill(decoder, "mask_decoder")
    embedded = _embedded(case, image)
    decoded = decoder.eval()(embedded)
    kernels = decoder.kernels(decoded.tokens)
    high_quality = dot(kernels[:, -1:], decoder.high_quality(decoded, embedded, early))
    masks = torch.cat((dot(kernels[:, :-1], decoded.upscaled), high_quality), dim=1)
    return {
        "masks_all": masks,
        "iou_pred": _iou(decoder, embedded),
        "hq_features": decoder.fine(embedded, early),
        "out_default": masks[:, :1] + masks[:, -1:],
        "out_hq_only": masks[:, -1:],
    }


def hsam_decoders(case: Case) -> dict[str, Tensor]:
    """Masks and predicted IoU of both stages, what the first hands on, and the second's last attention, ``attn1``."""
    (image,) = case.inputs()
    first = BatchedMaskDecoder(_masks(case), cross_first_transformer())
    case.fill(first, "mask_decoder")
    second = RefiningDecoder(first.num_mask_tokens, image[0, 0].numel())
    case.fill(second, "mask_decoder2")
    seen: list[Tensor] = []
    second.transformer2.final_attn_token_to_image.register_forward_hook(lambda _m, _a, out: seen.append(out))
    prior: list[Tensor] = []
    second.transformer2.register_forward_pre_hook(lambda _m, args: prior.append(args[3]))
    embedded = _embedded(case, image)
    decoded = first.eval()(embedded)
    masks = dot(first.kernels(decoded.tokens), decoded.upscaled)
    refined = second.eval()(embedded, masks, decoded)
    return {
        "stage1_masks": masks,
        "stage1_iou": _iou(first, embedded),
        "msk_feat": decoded.tokens @ decoded.image.flatten(2),
        "up_embed": decoded.upscaled,
        "ps_mask": nn.functional.interpolate(masks, size=image.shape[2:], mode="bilinear"),
        "stage2_masks": dot(second.kernels(refined.tokens), refined.upscaled),
        "stage2_iou": second.iou_prediction_head(refined.tokens[:, 0]),
        "attn1": seen[0],
    }


def samdec(case: Case) -> dict[str, Tensor]:
    """``out_eval`` and, the same, ``mask_decoder_masks``."""
    head, features = _head(case, "samdec")
    (out,) = head(features)
    return {"mask_decoder_masks": out, "out_eval": out}


def hqsam(case: Case) -> dict[str, Tensor]:
    """``out_eval``, and what training sees, ``out_train_mode_hq_only`` and ``mask_decoder_masks``."""
    head, features = _head(case, "hqsam")
    assert isinstance(head, HQSAMHead)
    (evaluation,) = head(features)
    (training,) = head.train()(features)
    return {"mask_decoder_masks": training, "out_eval": evaluation, "out_train_mode_hq_only": training}


def two_stages(case: Case) -> dict[str, Tensor]:
    """``out_eval``, and all masks of each stage."""
    head, features = _head(case, "hqhsam" if "HQHSAM" in case.module else "hsam")
    assert isinstance(head, TwoStageHead)
    embedded = head.embed(features[0])
    first, masks = head.first_stage(embedded, features)
    second: Decoded = head.mask_decoder2(embedded, masks, first)
    return {
        "mask_decoder_masks": masks,
        "mask_decoder2_masks": dot(head.mask_decoder2.kernels(second.tokens), second.upscaled),
        "out_eval": head(features)[0],
    }


def _masks(case: Case) -> int:
    """Number of masks beside the first, of an official decoder that is like the published ones in all else."""
    arguments = case.constructor
    other = [key for key, value in FIXED.items() if arguments.get(key, value) != value]
    stated = dict(re.findall(r"(\w+)=(\w+)", arguments["transformer"]))
    other += [key for key, value in stated.items() if TRANSFORMER.get(key) != value]
    if other:
        raise NotSupportedError(f"our decoder has no other {', '.join(other)}")
    masks: int = arguments.get("num_multimask_outputs", 3)
    return masks


def _embedded(case: Case, image: Tensor) -> Embedded:
    """What official decoders are given, by the case's prompt encoder without prompts."""
    encoder = PromptEncoder(**case.constructor["prompt_encoder"])
    case.fill(encoder, "prompt_encoder")
    return Embedded(image, encoder.no_mask_embed.weight[..., None, None], encoder.get_dense_pe())


def _iou(decoder: BatchedMaskDecoder, embedded: Embedded) -> Tensor:
    """The predicted IoU, which our decoder leaves out."""
    tokens = decoder.all_tokens().expand(len(embedded.image), -1, -1)
    tokens, _ = decoder.transformer(embedded.image + embedded.prompt, embedded.positions, tokens)
    return decoder.iou_prediction_head(tokens[:, 0])


def _head(case: Case, name: str) -> tuple[SAMHead, list[Tensor]]:
    """A head of the thesis in evaluation, and its maps."""
    arguments: dict[str, Any] = case.constructor
    inputs = case.inputs()
    channels = arguments.get("in_channels", arguments.get("last_out_ch"))
    early_channels = arguments.get("first_out_ch", channels)
    grid = (inputs[0].shape[2], inputs[0].shape[3])
    if arguments.get("nb_patches", grid[0] * grid[1]) != grid[0] * grid[1]:
        raise NotSupportedError(f"{arguments['nb_patches']} patches stated, but maps of {grid}")
    maps = FeatureMaps(early_channels, grid, arguments["patch_sz"])
    own = {} if arguments.get("train_prompt_enc", True) else {"train_prompt_encoder": False}
    head = create_head(name, maps, arguments["num_classes"], **own)
    assert isinstance(head, SAMHead)
    edge = arguments["image_pe_size"] // SAM_PATCH
    head.prompt_encoder.image_embedding_size = (edge, edge)
    listed = case.meta.get("state_dict", {"neck.0.weight": ()})
    if "neck.0.weight" not in listed:  # the backbone has it
        head.neck = None
    elif channels != early_channels:
        head.neck = sam_neck(channels)
    case.expect_names(head)
    case.fill(head)
    head.eval()
    return head, inputs[: head.maps]
