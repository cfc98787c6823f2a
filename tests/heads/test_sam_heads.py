"""Decode heads of the SAM family: what `HeadTester` asks of all heads, official names and weights, and both stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.hqsam import HQMaskDecoder
from nnunet_fm.heads.hsam import TwoStageHead, with_noise
from nnunet_fm.heads.hsam_decoder import RefiningDecoder, cross_first_transformer
from nnunet_fm.heads.sam_base import SAMHead, sam_neck
from nnunet_fm.heads.sam_decoder import BatchedMaskDecoder, Decoded, Embedded, TwoWay, dot
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from tests.helpers.errors import fails
from tests.helpers.head_tester import HeadTester
from tests.helpers.official_weights import check_official
from tests.helpers.small_networks import count, shapes

MANIFESTS = Path(__file__).parents[1] / "manifests"
FAMILY = ("samdec", "samdec_frozen_pe", "hqsam", "hsam", "hqhsam")
TWO_STAGES = ("hsam", "hqhsam")


class TestSAMDec(HeadTester):
    name = "samdec"
    counts: ClassVar = {(768, 16, 15): 6_400_172}


class TestSAMDecFrozenPE(HeadTester):
    name = "samdec_frozen_pe"
    counts: ClassVar = {(768, 16, 15): 6_393_952}


class TestHQSAM(HeadTester):
    name = "hqsam"
    counts: ClassVar = {(768, 16, 15): 7_606_972}


class TestHSAM(HeadTester):
    name = "hsam"
    counts: ClassVar = {(768, 16, 15): 15_978_153}


class TestHQHSAM(HeadTester):
    name = "hqhsam"
    counts: ClassVar = {(768, 16, 15): 17_317_051, (768, 14, 3): 12_883_171}


def published(name: str, classes: int = 15, channels: int = 768, patch_size: int = 16, **changes: Any) -> SAMHead:
    """A head for images of 224 pixels, on the meta device."""
    edge = 224 // patch_size
    with torch.device("meta"):
        head = create_head(name, FeatureMaps(channels, (edge, edge), patch_size), classes, **changes)
    assert isinstance(head, SAMHead)
    return head


def small(name: str, grid: tuple[int, int] = (4, 4), classes: int = 2, patch_size: int = 16, **changes: Any) -> SAMHead:
    torch.manual_seed(0)
    head = create_head(name, FeatureMaps(16, grid, patch_size), classes, **changes)
    assert isinstance(head, SAMHead)
    return head


def maps_for(head: SAMHead, grid: tuple[int, int] = (4, 4), batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, 16, *grid) for _ in range(head.maps)]


def trained(head: SAMHead) -> int:
    return sum(p.numel() for p in head.parameters() if p.requires_grad)


# --- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "patch_size", "counts"),
    [
        (768, 16, (17_317_051, 13_644_016, 12_419_671)),
        (768, 14, (17_780_551, 14_107_516, 12_883_171)),
        (1024, 16, (17_644_731, 13_971_696, 12_747_351)),
        (1024, 14, (18_108_231, 14_435_196, 13_210_851)),
        (1280, 16, (17_972_411, 14_299_376, 13_075_031)),
        (1280, 14, (18_435_911, 14_762_876, 13_538_531)),
        (1536, 14, (18_763_591, 15_090_556, 13_866_211)),
    ],
)
def test_hqhsam_has_every_published_count(channels: int, patch_size: int, counts: tuple[int, ...]) -> None:
    found = tuple(trained(published("hqhsam", classes, channels, patch_size)) for classes in (15, 6, 3))
    assert found == counts


@pytest.mark.parametrize(
    ("name", "classes", "number"),
    [
        ("samdec", 15, 5_612_716),
        ("samdec_frozen_pe", 15, 5_606_496),
        ("hqhsam", 15, 16_529_595),
        ("hqhsam", 6, 12_856_560),
        ("hqhsam", 3, 11_632_215),
    ],
)
def test_counts_with_the_neck_in_the_backbone(name: str, classes: int, number: int) -> None:
    head = published(name, classes)
    assert count(sam_neck(768)) == 787_456
    head.neck = None
    assert trained(head) == number


def test_what_is_frozen_is_frozen_from_the_start() -> None:
    for name in FAMILY:
        head = published(name)
        frozen = {n for n, p in head.named_parameters() if not p.requires_grad}
        assert frozen == {
            n for n, _ in head.named_parameters() if n.startswith(tuple(f"{key}." for key in head.frozen_keys))
        }
        assert any(n.startswith("mask_decoder.iou_prediction_head.") for n in frozen) is name.startswith("samdec")
        assert any(n.startswith("prompt_encoder.") for n in frozen) is (name == "samdec_frozen_pe")


@pytest.mark.parametrize("patches", [196, 256, 1024, 30, 13, 49])
def test_attention_over_patches_has_the_most_heads_that_divide_them(patches: int) -> None:
    with torch.device("meta"):
        decoder = RefiningDecoder(3, patches)
    heads = {196: 7, 256: 8, 1024: 8, 30: 6, 13: 1, 49: 7}[patches]
    assert decoder.self_attn.num_heads == decoder.self_attn2.num_heads == heads


# --- official names and weights ----------------------------------------------------------------------------------


def manifest(name: str) -> dict[str, list[int]]:
    content: dict[str, dict[str, list[int]]] = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    return content["state_dict"]


def official(name: str = "sam_vit_b") -> dict[str, Tensor]:
    """A whole official state dict on the meta device."""
    return {key: torch.empty(shape, device="meta") for key, shape in manifest(name).items()}


def official_hq() -> dict[str, Tensor]:
    decoder = manifest("samhq_vit_b_mask_decoder")
    return official() | {f"mask_decoder.{key}": torch.empty(s, device="meta") for key, s in decoder.items()}


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("samhq_vit_b_mask_decoder", lambda: HQMaskDecoder(3, 768)),
        ("hsam_mask_decoder_224", lambda: BatchedMaskDecoder(8, cross_first_transformer())),
        ("hsam_mask_decoder2_224", lambda: RefiningDecoder(9, 196)),
    ],
)
def test_decoders_have_the_official_names_and_shapes(name: str, decoder: Any) -> None:
    with torch.device("meta"):
        own = shapes(decoder())
    assert own == manifest(name)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("file", "channels"), [("sam_vit_b", 768), ("sam_vit_l", 1024), ("sam_vit_h", 1280)])
def test_neck_and_prompt_encoder_start_from_the_official_file(name: str, file: str, channels: int) -> None:
    head, theirs = published(name, channels=channels), official(file)
    ours = head.from_official(theirs)
    own = {key: tensor for key, tensor in head.state_dict().items() if key.startswith(("neck.", "prompt_encoder."))}
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in own.items()}
    assert ours["neck.2.weight"] is theirs["image_encoder.neck.2.weight"]
    assert all(ours[key] is theirs[key] for key in ours if key.startswith("prompt_encoder."))


def test_a_neck_of_another_width_or_place_is_left_out() -> None:
    narrow, bare = published("hqhsam", channels=384), published("samdec")
    bare.neck = None
    for head in (narrow, bare):
        ours = head.from_official(official())
        assert len(ours) == 17 and all(key.startswith("prompt_encoder.") for key in ours)


def test_a_file_without_a_part_is_refused() -> None:
    head = published("hqhsam")
    for part in ("prompt_encoder.no_mask_embed.weight", "image_encoder.neck.0.weight"):
        theirs = official()
        del theirs[part]
        with fails("weights-decoder", "MedSAM", "1", part):
            head.from_official(theirs)
    encoder = {key: tensor for key, tensor in official().items() if key.startswith(("image_encoder.", "prompt_"))}
    head.from_official(encoder)
    head.starts_mask_decoder = True
    with fails("weights-decoder", "mask_decoder.iou_token.weight"):
        head.from_official(encoder)


@pytest.mark.parametrize("name", FAMILY)
def test_a_mask_decoder_starts_from_what_fits(name: str) -> None:
    by_class = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head.layers.2")
    theirs = official()
    decoder = {key for key in theirs if key.startswith("mask_decoder.")}
    for classes in (15, 3):
        head = published(name, classes)
        head.starts_mask_decoder = True
        ours = head.from_official(theirs)
        expected = {key for key in decoder if classes == 3 or not key.startswith(head.keys_to_classifier)}
        assert {key for key in ours if key.startswith("mask_decoder")} == expected
        assert classes == 3 or not any(part in key for key in expected for part in by_class)
        assert all(ours[key] is theirs[key] for key in expected)


def test_the_decoder_of_hq_sam_starts_the_layers_of_high_quality() -> None:
    theirs = official_hq()
    for channels in (768, 1024):
        head = published("hqhsam", channels=channels)
        head.starts_mask_decoder = True
        if channels == 1024:
            theirs |= {k: v for k, v in official("sam_vit_l").items() if k.startswith("image_encoder.neck.")}
        ours = head.from_official(theirs)
        assert ours["mask_decoder.hf_token.weight"] is theirs["mask_decoder.hf_token.weight"]
        assert ("mask_decoder.compress_vit_feat.0.weight" in ours) is (channels == 768)
        assert not any(key.startswith("mask_decoder2.") for key in ours)


@pytest.mark.parametrize(("name", "backbone"), [("hqhsam", "dinov2_b"), ("hsam", "dinov2_s"), ("samdec", "dinov2_b")])
def test_the_load_report_accounts_for_the_head_s_file(name: str, backbone: str) -> None:
    with torch.device("meta"):
        network = FoundationSegmenter2D(1, 3, backbone=backbone, head=name)
    neck = () if backbone == "dinov2_b" else (r"^neck\.",)
    section = check_official(network, official(), part="head", new=(r"^mask_decoder2?\.", *neck)).sections[0]
    assert len(section.matched) == 17 + (6 if not neck else 0)
    assert all(key.startswith(("mask_decoder", "neck.")) for key in section.missing)
    with fails("weights-decoder", "MedSAM"):
        check_official(network, {"cls_token": torch.empty(1, device="meta")}, part="head")


# --- what is computed --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_gives_what_the_official_decoder_gives_image_by_image() -> None:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    theirs = MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=4)
    ours = BatchedMaskDecoder(4, TwoWay())
    ours.load_state_dict(theirs.state_dict())
    image, prompt, positions = torch.randn(3, 256, 3, 5), torch.randn(1, 256, 1, 1), torch.randn(1, 256, 3, 5)
    decoded = ours(Embedded(image, prompt, positions))
    masks = dot(ours.kernels(decoded.tokens), decoded.upscaled)
    for one, mask in zip(image.split(1), masks, strict=True):
        expected, _ = theirs.predict_masks(
            image_embeddings=one,
            image_pe=positions,
            sparse_prompt_embeddings=torch.empty(1, 0, 256),
            dense_prompt_embeddings=prompt.expand(-1, -1, 3, 5),
        )
        torch.testing.assert_close(mask[None], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "patch_size", "own", "mode"),
    [((4, 4), 16, (4, 4), None), ((16, 16), 14, (14, 14), "bilinear"), ((4, 8), 14, (3, 7), "bilinear"),
     ((7, 7), 32, (14, 14), "area"), ((3, 5), 32, (6, 10), "area")],
)  # fmt: skip
def test_positions_are_those_of_sam_s_grid_resized(
    grid: tuple[int, int], patch_size: int, own: tuple[int, int], mode: str | None
) -> None:
    head = small("samdec", grid, patch_size=patch_size)
    expected = head.prompt_encoder.pe_layer(own)[None]
    if mode is not None:
        expected = F.interpolate(expected, size=grid, mode=mode)
    last = torch.randn(2, 16, *grid)
    assert torch.equal(head.embed(last).positions, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.embed(last).positions, expected)


def test_without_a_neck_the_embedding_comes_from_the_backbone() -> None:
    for name in FAMILY:
        head = small(name).eval()
        neck, maps = head.neck, maps_for(head)
        assert neck is not None and head.neck_in_backbone is name.startswith("samdec")
        with torch.no_grad():
            (expected,) = head(maps)
            head.neck = None
            (found,) = head([neck(maps[0]), *maps[1:]])
        assert torch.equal(found, expected)


@torch.no_grad()
def test_hqsam_adds_sam_s_masks_in_evaluation_only() -> None:
    head = small("hqsam", classes=3)
    maps = maps_for(head)
    (training,), (evaluation,) = head.train()(maps), head.eval()(maps)
    decoded = head.mask_decoder(head.embed(maps[0]))
    sam = dot(head.mask_decoder.kernels(decoded.tokens)[:, 1:-1], decoded.upscaled)
    torch.testing.assert_close(evaluation - training, sam, rtol=1e-4, atol=1e-5)
    assert sam.shape == (2, 3, 16, 16) and sam.std() > 1e-4


@pytest.mark.parametrize("name", TWO_STAGES)
@torch.no_grad()
def test_two_stages_are_averaged_in_evaluation_and_returned_in_training(name: str) -> None:
    head = small(name, classes=3)
    assert isinstance(head, TwoStageHead)
    maps = maps_for(head)
    first, second = head.train()(maps)
    assert first.shape == (2, 3, 16, 16) and second.shape == (2, 3, 64, 64)
    assert not torch.equal(head(maps)[1], second), "noise and dropout act on the second stage"
    assert torch.equal(head(maps)[0], first), "and on that alone"
    (evaluation,) = head.eval()(maps)
    assert torch.equal(head(maps)[0], evaluation)
    embedded = head.embed(maps[0])
    decoded, masks = head.first_stage(embedded, maps)
    torch.testing.assert_close(masks[:, 1:4], first)
    refined = head.mask_decoder2(embedded, masks, decoded)
    second = dot(head.mask_decoder2.kernels(refined.tokens), refined.upscaled)
    assert masks.shape[1] == second.shape[1] == {"hsam": 4, "hqhsam": 5}[name]
    expected = (F.interpolate(first, size=(64, 64), mode="bilinear") + second[:, 1:4]) / 2
    torch.testing.assert_close(evaluation, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hqhsam_hands_on_the_mean_of_both_kinds_of_masks() -> None:
    head = small("hqhsam", classes=3).eval()
    assert isinstance(head, TwoStageHead)
    maps = maps_for(head)
    embedded = head.embed(maps[0])
    plain = head.mask_decoder(embedded)
    fine = head.mask_decoder.high_quality(plain, embedded, maps[1])
    kernels = head.mask_decoder.kernels(plain.tokens)
    sam, high_quality = dot(kernels[:, :-1], plain.upscaled), dot(kernels[:, 1:], fine)
    decoded, masks = head.first_stage(embedded, maps)
    expected = torch.cat((sam[:, :1], (sam[:, 1:] + high_quality[:, :-1]) / 2, high_quality[:, -1:]), dim=1)
    torch.testing.assert_close(masks, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded.upscaled, (plain.upscaled + fine) / 2)


def test_noise_is_a_fifth_of_the_range() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 256, 14, 14) * 3 - 7
    noise = with_noise(image) - image
    assert noise.std().item() == pytest.approx(0.2 * 3, rel=0.01) and abs(noise.mean()) < 0.01


# --- what was published without effect ---------------------------------------------------------------------------


def refine(decoder: RefiningDecoder, grid: tuple[int, int], scale: float) -> Tensor:
    """The tokens of a second stage, whose prior masks differ by `scale`."""
    generator = torch.Generator().manual_seed(0)
    height, width = grid

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    embedded = Embedded(noise(1, 256, *grid), noise(1, 256, 1, 1), noise(1, 256, *grid))
    masks = noise(1, 3, 4 * height, 4 * width) * scale
    first = Decoded(noise(1, 3, 256), noise(1, 256, *grid), noise(1, 32, 4 * height, 4 * width))
    tokens: Tensor = decoder(embedded, masks, first).tokens
    return tokens


PATCH_LAYERS = r"mask_decoder2\.(self_attn2?|norm[12]|mlp|med_sel)\."


@pytest.mark.parametrize("name", TWO_STAGES)
def test_attention_over_patches_acts_only_where_repaired(name: str) -> None:
    for repaired in (False, True):
        head = small(name, repaired=repaired)
        with torch.no_grad():
            head.get_submodule("mask_decoder2.med_sel.0").bias.fill_(50)  # keeps the ReLU open
        maps = maps_for(head)
        sum((out * torch.randn_like(out)).sum() for out in head.train()(maps)).backward()
        layers = [head.get_submodule(f"mask_decoder2.{key}") for key in ("self_attn", "norm1", "mlp", "med_sel")]
        for layer in layers:
            assert all((p.grad is not None) is repaired for p in layer.parameters())


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (3, 5)])
@torch.no_grad()
def test_tokens_see_the_image_through_the_masks_on_published_grids_or_where_repaired(
    grid: tuple[int, int], repaired: bool
) -> None:
    torch.manual_seed(0)
    decoder = RefiningDecoder(3, grid[0] * grid[1], repaired=repaired).eval()
    calls: list[Tensor | None] = []
    for layer in decoder.transformer2.layers:
        layer.cross_attn_token_to_image.register_forward_pre_hook(lambda _m, args: calls.append(args[3]))
        layer.cross_attn_image_to_token.register_forward_pre_hook(lambda _m, args: calls.append(args[3]))
    tokens = refine(decoder, grid, 1.0)
    to_image, to_token = calls[::2], calls[1::2]
    through = repaired or grid == (14, 14)
    assert len(calls) == 4 and all((prior is not None) is through for prior in to_image)
    assert all(prior is not None and prior.shape == (1, grid[0] * grid[1], 3) for prior in to_token)
    assert not torch.allclose(tokens, refine(decoder, grid, 3.0), atol=1e-3)


@torch.no_grad()
def test_the_repaired_attention_map_sums_to_one_over_the_image() -> None:
    torch.manual_seed(0)
    decoder = RefiningDecoder(3, 15, repaired=True).eval()
    first = Decoded(torch.randn(2, 3, 256), torch.randn(2, 256, 3, 5), torch.empty(0))
    attention = decoder.attention_map(first)
    assert attention.shape == (2, 1, 3, 5) and attention.std() > 0
    torch.testing.assert_close(attention.sum(dim=(2, 3)), torch.ones(2, 1))
