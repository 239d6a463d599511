"""What published Swin weights are called: by each library, alone in a file or as the backbone of another model."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from owl_swin.errors import CheckpointError

# What each library calls our modules. In "stages" and "merges", {odd} and {even} are 2 * stage + 1 and + 2.
TORCHVISION = {
    "library": "torchvision",
    "patch_embed": "features.0.0",
    "patch_norm": "features.0.2",
    "stages": "features.{odd}.{block}",
    "merges": "features.{even}",
    "norm": "norm",
    "norm1": "norm1",
    "attn": "attn",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.0": "mlp.0",
    "mlp.2": "mlp.3",
}
TIMM = TORCHVISION | {
    "library": "timm",
    "patch_embed": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    "stages": "layers.{stage}.blocks.{block}",
    "merges": "layers.{next}.downsample",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
MICROSOFT = TIMM | {"merges": "layers.{stage}.downsample"}
# timm's models that give the maps of their stages have no modules within modules.
TIMM_FEATURES = TIMM | {"stages": "layers_{stage}.blocks.{block}", "merges": "layers_{next}.downsample"}
TRANSFORMERS = {
    "library": "transformers",
    "patch_embed": "embeddings.patch_embeddings.projection",
    "patch_norm": "embeddings.norm",
    "stages": "encoder.layers.{stage}.blocks.{block}",
    "merges": "encoder.layers.{stage}.downsample",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "attn": "attention.relative_position_bias",
    "attn.qkv": "attention.q_proj attention.k_proj attention.v_proj",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
# transformers' files keep the names that its modules had before version 5.
TRANSFORMERS_FILES = TRANSFORMERS | {
    "attn": "attention.self",
    "attn.qkv": "attention.self.query attention.self.key attention.self.value",
    "attn.proj": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
LAYOUTS = (TORCHVISION, MICROSOFT, TIMM, TIMM_FEATURES, TRANSFORMERS_FILES, TRANSFORMERS)

TABLE = "relative_position_bias_table"
# What stands beside a Swin in its own files: classifiers, SimMIM's decoder and mask, the norms that a detector wants
# of each stage, the norm that it does without, and buffers that follow from the window size.
BESIDE = re.compile(
    r"(head|classifier|decoder|pooler|hidden_states_norms|norm\d*|(swin\.)?layernorm)\."
    r"|.*(relative_position_index|attn_mask|mask_token)$"
)
# Where a model that reads the map of every stage keeps their norms.
STAGE_NORMS = re.compile(r"(?:hidden_states_norms\.(?:stage)?|layer_norms\.|norm)(\d+)\.(?:weight|bias)")
SWIN_V2 = re.compile(r"cpb_mlp|meta_mlp|continuous_position_bias_mlp")


@dataclass(frozen=True, slots=True)
class SwinKeys:
    """Where a Swin's tensors are among those of a file.

    ``prefix`` stands before all of its keys. ``norm`` is what the last map is normalised by, without its "weight" and
    "bias"; None: nothing is. ``stage_norms`` are those of the maps that another model reads, in their order; none: no
    other model does.
    """

    layout: Mapping[str, str]
    prefix: str
    depths: tuple[int, ...]
    norm: str | None
    stage_norms: tuple[str, ...]

    @property
    def backbone(self) -> bool:
        """Whether another model reads the maps of its stages."""
        return bool(self.stage_norms)

    @property
    def padding(self) -> str:
        """What its library does at the right and bottom edge, as SwinConfig has it."""
        library = self.layout["library"]
        if not self.backbone or library == "torchvision":
            return library
        # Microsoft's own detectors do what transformers' do, which were made from them.
        return "timm_backbone" if self.layout is TIMM_FEATURES else "transformers_backbone"

    def keys_of(self, name: str) -> list[str]:
        """Where our parameter ``name`` is: one key, three where q, k and v are kept apart, none where it has none."""
        module, _, leaf = name.rpartition(".")
        if module == "norm":
            return [] if self.norm is None else [f"{self.norm}.{leaf}"]
        return [self.prefix + key for key in published_keys(name, self.layout)]


def find_swin(tensors: Mapping[str, Tensor]) -> SwinKeys:
    """The one Swin among the tensors of a file; where there is none, or several, raises CheckpointError."""
    found = {prefix: layout for layout, prefix in _candidates(tensors)}
    if not found and any(SWIN_V2.search(key) for key in tensors):
        raise CheckpointError("these are weights of Swin Transformer V2, another architecture; give a Swin (V1) model")
    if not found:
        some = first_few(sorted(tensors)) or "nothing"
        raise CheckpointError(f"not Swin weights of torchvision, timm or transformers; the keys are: {some}")
    if len(found) > 1:
        places = first_few([prefix.rstrip(".") or "its top" for prefix in found])
        raise CheckpointError(f"holds {len(found)} Swin Transformers, at {places}; give a file with one of them")
    ((prefix, layout),) = found.items()
    depths = _depths(tensors, layout, prefix)
    norm, stage_norms = _norms(tensors, layout, prefix, len(depths))
    return SwinKeys(layout, prefix, depths, norm, stage_norms)


def published_keys(name: str, layout: Mapping[str, str]) -> list[str]:
    """What a library calls our parameter ``name``: one key, or three where it keeps q, k and v apart."""
    place = re.fullmatch(r"(stages|merges)\.(\d+)\.(?:(\d+)\.)?(.+)", name)
    if place is None:
        module, _, leaf = name.rpartition(".")
        return [f"{layout[module]}.{leaf}"]
    part, stage, block, rest = place[1], int(place[2]), place[3], place[4]
    start = layout[part].format(stage=stage, block=block, next=stage + 1, odd=2 * stage + 1, even=2 * stage + 2)
    if part == "merges":  # the one part that has the same names everywhere
        return [f"{start}.{rest}"]
    module, _, leaf = rest.rpartition(".")
    return [f"{start}.{key}.{leaf}" for key in layout[module].split()]


def first_few(items: list[str]) -> str:
    """The first three of many names."""
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Mapping[str, str], str]]:
    """Layouts and prefixes that fit; of one prefix, the layout that fits best comes last."""
    for layout in LAYOUTS:
        start = layout["patch_embed"] + ".weight"
        table = published_keys(f"stages.0.0.attn.{TABLE}", layout)[0]
        merge = published_keys("merges.0.reduction.weight", layout)[0]
        for key in tensors:
            prefix = key.removesuffix(start)
            if key.endswith(start) and (not prefix or prefix.endswith(".")) and prefix + table in tensors:
                # Of MICROSOFT and TIMM, which differ in the place of the mergings alone, TIMM has those with none.
                if layout is MICROSOFT and prefix + merge not in tensors:
                    continue
                if layout is TIMM and prefix + published_keys("merges.0.reduction.weight", MICROSOFT)[0] in tensors:
                    continue
                yield layout, prefix


def _norms(
    tensors: Mapping[str, Tensor], layout: Mapping[str, str], prefix: str, stages: int
) -> tuple[str | None, tuple[str, ...]]:
    """What the last map is normalised by, and the norms of single stages."""
    parts = [f"{part}." for part in prefix.split(".")[:-1]]
    ancestors = ["".join(parts[: len(parts) - up]) for up in range(min(len(parts), 2) + 1)]
    own = prefix + layout["norm"]
    norm = own if f"{own}.weight" in tensors or f"{own}.bias" in tensors else None
    for place in ancestors:
        norms = {
            int(found[1]): f"{place}{key[len(place) :].rpartition('.')[0]}"
            for key in tensors
            if key.startswith(place) and (found := STAGE_NORMS.fullmatch(key, len(place)))
        }
        if norms:
            last = norms[max(norms)]
            first_map, last_map = (tensors.get(f"{one}.weight") for one in (prefix + layout["patch_embed"], last))
            dims = [0 if one is None or not one.ndim else one.shape[0] for one in (first_map, last_map)]
            is_last = dims[0] * 2 ** (stages - 1) == dims[1]
            return (last if is_last else None), tuple(norms[stage] for stage in sorted(norms))
    return norm, ()


def _depths(tensors: Mapping[str, Tensor], layout: Mapping[str, str], prefix: str) -> tuple[int, ...]:
    pattern = re.escape(prefix + layout["stages"]).replace(r"\{block\}", r"(\d+)")
    pattern = pattern.replace(r"\{odd\}", r"(\d*[13579])").replace(r"\{stage\}", r"(\d+)")
    places = {(int(m[1]), int(m[2])) for m in (re.match(pattern + r"\.", key) for key in tensors) if m}
    if layout is TORCHVISION:
        places = {(odd // 2, block) for odd, block in places}
    blocks: dict[int, list[int]] = {}
    for stage, block in sorted(places):
        blocks.setdefault(stage, []).append(block)
    if not blocks or list(blocks) != list(range(len(blocks))) or any(b != list(range(len(b))) for b in blocks.values()):
        raise CheckpointError(f"whole blocks of this Swin encoder are missing; there are, stage by stage, {blocks}")
    return tuple(len(b) for b in blocks.values())
