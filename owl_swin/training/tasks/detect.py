"""The detection task: scenes with boxes and names, matched and scored as OWL-ViT does (arXiv:2205.06230)."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from owl_swin.boxes import xyxy_to_cxcywh
from owl_swin.config import ModelConfig
from owl_swin.data.scenes import PictureCache, Scene, Scenes, load_scenes
from owl_swin.errors import ConfigError
from owl_swin.frame import exemplar_side, normalise
from owl_swin.models.heads import cell_centres
from owl_swin.models.owl_swin import OwlSwin, encode_from_patches
from owl_swin.scoring import raw_logits
from owl_swin.training.augment import Canvas, mosaic
from owl_swin.training.batch_losses import LEAST_QUALITY, detection_losses, pad_scenes
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.exemplars import ExemplarBatch, ExemplarDraw, encode_exemplars, stack
from owl_swin.training.initial import copy_pooled_to_class_head
from owl_swin.training.losses import box_losses, focal_loss, merge_same_boxes
from owl_swin.training.mask_teaching import branch_losses
from owl_swin.training.matched import MatchedScene, first_of, inside, one_by_one, overlap_with_targets, places_in
from owl_swin.training.matcher import MATCHERS
from owl_swin.training.naming import DenseNames, name_loss
from owl_swin.training.preview import draw_preview
from owl_swin.training.sampling import SceneSampler, rarity_over_sets
from owl_swin.training.streams import stream_seed
from owl_swin.training.tasks.align import AlignTask
from owl_swin.training.tasks.detect_batch import DetectBatch
from owl_swin.training.tasks.image import ImageTask
from owl_swin.training.taught import TaughtWeights, embed_loss, image_embed_loss, taught_batch
from owl_swin.training.texts import TextBank, prompted
from owl_swin.training.true_masks import TrueMasks
from owl_swin.training.views import jitter_colours
from owl_swin.types import ImageEmbeddings

# Height and width of a batch in fractions of image_size: square, landscape, portrait.
SHAPES = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.7))


class DetectTask(ImageTask):
    """Draws a set by weight for each scene; positives are the scene's names, negatives other names of its own set that
    are known to be absent."""

    def __init__(
        self,
        config: TrainConfig,
        model: OwlSwin,
        process: Process,
        *,
        sets: Sequence[Scenes] = (),
        taught: TaughtWeights | None = None,
    ):
        """``sets`` stand for those of ``config.data`` where they were read before; their scenes have a teacher's
        embeddings where ``taught`` says how these count."""
        self.config, self.model, self.process = config, model, process
        self.boxes_learn = any(config.optim.rest)
        self.masks_learn = model.masks is not None and config.optim.masks > 0
        # A processor is quicker scene by scene, with nothing padded; what masks and teachers say is of single boxes.
        apart = process.device.type == "cpu" or self.masks_learn or taught is not None
        self.together = config.detect.matching == "aligned" and not apart
        if not (self.boxes_learn or self.masks_learn):
            raise ConfigError(
                f"optim: only masks_lr is above 0, and {config.model} has no mask branch; add [masks] to it, or set "
                "another learning rate"
            )
        if config.detect.fresh_class_head:
            copy_pooled_to_class_head(model)
        cache = PictureCache(int(config.cache_gib * 2**30))
        self.sets: list[Scenes] = list(sets) or [
            load_scenes(data, cache, masks=self.masks_learn) for data in config.data
        ]
        self.taught = taught
        weights = np.array([data.weight for data in config.data])
        self.odds = weights / weights.sum()
        # Classes of several sets that are said the same are one class of the bank.
        places: dict[tuple[str, ...], int] = {}
        self.rows = [
            np.array([places.setdefault(tuple(own), len(places)) for own in scenes.names]) for scenes in self.sets
        ]
        self.names = [own[0] for own in places]
        self.bank = TextBank(self.texts_of(list(places)), model, trainable=config.optim.text_lr > 0)
        self.samplers = [SceneSampler(own, data.repeat) for own, data in zip(self.sets, config.data, strict=True)]
        self.name_weights = rarity_over_sets(self.samplers, self.rows, self.odds, len(places))
        learns = config.optim.stem_lr > 0
        self.naming = DenseNames(config.naming, model, stem_learns=learns) if config.naming.weights else None
        self.extra = nn.ModuleDict()
        self.align = None
        if config.align_data and self.boxes_learn:
            self.align = AlignTask(config, model, config.align_data, config.align_batch_size, process)
            self.extra = self.align.extra
        self.matcher = MATCHERS[config.detect.matching]
        self.draws = [ExemplarDraw(scenes) for scenes in self.sets] if config.detect.exemplars else []
        self.crop_side = exemplar_side(model.config.exemplar_stride)

    @staticmethod
    def texts_of(names: Sequence[Sequence[str]]) -> list[list[str]]:
        """The texts by which classes of these names are asked for."""
        return prompted(names)

    def sets_as_read(self) -> list[str]:
        """With those of the alignment beside it."""
        return super().sets_as_read() + (self.align.sets_as_read() if self.align else [])

    def batch(self, index: int) -> DetectBatch:
        """This process's share of a batch: a function of the seed and the index alone, so that a resumed run sees the
        same, and so that the processes together see the scenes that one would. Exemplars are of a process's own
        scenes."""
        config, rng = self.config, np.random.default_rng(stream_seed(self.config.seed, index))
        colours = torch.from_numpy(rng.random((config.batch_size * self.process.world, 3), dtype=np.float32))
        shape = SHAPES[rng.integers(len(SHAPES))]
        longer = config.image_size * config.detect.scales[rng.integers(len(config.detect.scales))]
        hw = (max(32, round(longer * shape[0] / 32) * 32), max(32, round(longer * shape[1] / 32) * 32))
        chances = torch.from_numpy(rng.random(len(self.bank), dtype=np.float32)).clamp(max=1 - 1e-6)
        canvases, asked, labels, shown, rows = [], [], [], [], []
        first = self.process.rank * config.batch_size
        for place in range(first, first + config.batch_size):
            rng = np.random.default_rng(stream_seed(config.seed, index, place))
            owner = int(rng.choice(len(self.sets), p=self.odds))
            canvas, drawn = self._canvas(owner, hw, rng)
            canvases.append(canvas)
            own = np.unique(canvas.labels[canvas.scores > 0])
            labels.append(torch.from_numpy(self.rows[owner][canvas.labels]))
            asked.append(self._asked(owner, own, drawn, rng))
            shown.append((owner, own, drawn))
            rows.append(canvas.rows)
        classes = torch.cat(asked + labels).unique()  # [Q], sorted
        scale = torch.tensor([hw[1], hw[0], hw[1], hw[0]])
        return DetectBatch(
            pixels=torch.from_numpy(np.stack([canvas.pixels for canvas in canvases])).permute(0, 3, 1, 2),
            boxes=[xyxy_to_cxcywh(torch.from_numpy(canvas.boxes) / scale) for canvas in canvases],
            labels=[torch.searchsorted(classes, own) for own in labels],
            scores=[torch.from_numpy(canvas.scores) for canvas in canvases],
            asked=[torch.searchsorted(classes, own) for own in asked],
            classes=classes,
            texts=self.bank.draw(classes, chances[classes]),
            colours=colours[first : first + config.batch_size],
            align=self.align.batch(index) if self.align else None,
            exemplars=self._exemplars(shown, classes, index) if self.draws else None,
            taught=taught_batch([drawn for _, _, drawn in shown], rows) if self.taught else None,
            masks=[TrueMasks.of(canvas.masks, hw) for canvas in canvases] if self.masks_learn else (),
            index=index,
        )

    def preview(self, averaged: nn.Module, batch: DetectBatch) -> Image.Image:
        """What the averaged model finds in the scenes of a batch, each asked for the names that it holds."""
        scenes = []
        for pixels, columns in zip(batch.pixels, batch.labels, strict=True):
            scenes.append((pixels, list(dict.fromkeys(self.names[int(batch.classes[column])] for column in columns))))
        assert isinstance(averaged, OwlSwin)
        return draw_preview(averaged, scenes, self.config.image_size)

    def result_config(self) -> ModelConfig:
        """A model that learned to detect is used at the size that it learned at. One that learned masks alone finds
        what it found before, at the scores that it gave before."""
        if not self.boxes_learn:
            return self.with_scores_of_before()
        return replace(self.model.config, image_size=self.config.image_size)

    def _exemplars(
        self, shown: list[tuple[int, np.ndarray, list[Scene]]], classes: Tensor, index: int
    ) -> ExemplarBatch:
        """Crops of things in the scenes ``shown`` (set, names and pictures of each), or of others called the same."""
        rng = np.random.default_rng(stream_seed(self.config.seed, index, self.process.rank, 1))
        with_things = [scene for scene in shown if len(scene[1])]
        crops, labels = [], []
        for place in rng.permutation(len(with_things))[: self.config.detect.exemplars]:
            owner, own, drawn = with_things[place]
            label = int(rng.choice(own))
            crop = self.draws[owner].crop(label, drawn, self.crop_side, rng)
            if crop is not None:
                crops.append(crop)
                labels.append(int(self.rows[owner][label]))
        columns = torch.searchsorted(classes, torch.tensor(labels, dtype=torch.long))
        return stack(crops, columns, self.crop_side, rng)

    def _canvas(self, owner: int, hw: tuple[int, int], rng: np.random.Generator) -> tuple[Canvas, list[Scene]]:
        settings = self.config.detect
        odds = self.config.data[owner].mosaic or settings.mosaic
        side = 1 + int(rng.choice(len(odds), p=odds))
        scenes, pictures = zip(*(self.samplers[owner].draw(rng) for _ in range(side * side)), strict=True)
        return mosaic(pictures, hw, rng, min_kept=settings.min_crop, zoom=settings.zoom), list(scenes)

    def _asked(self, owner: int, labels: np.ndarray, drawn: list[Scene], rng: np.random.Generator) -> Tensor:
        """Names that are scored in a canvas, as classes of the bank in order: its own, and up to ``negatives`` others
        that none of its pictures shows. A picture speaks only of names that its set has annotated in it."""
        names = len(self.sets[owner].names)
        absent, open_question = np.ones(names, dtype=bool), np.ones(names, dtype=bool)
        for scene in drawn:
            if scene.negatives is not None:
                checked = np.zeros(names, dtype=bool)
                checked[scene.negatives] = True
                absent &= checked
            for known in (scene.labels, scene.unknown):
                absent[known] = open_question[known] = False
        settings = self.config.detect
        others = rng.permutation(np.flatnonzero(absent))[: settings.negatives]
        more = min(settings.pseudo_negatives, settings.negatives - len(others))
        if more > 0:
            guesses = rng.permutation(np.flatnonzero(open_question & ~absent))[:more]
            others = np.concatenate([others, guesses])
        return torch.from_numpy(np.unique(self.rows[owner][np.union1d(labels, others).astype(np.int64)]))

    def step_losses(self, batch: DetectBatch) -> dict[str, Tensor]:
        """The losses of a batch by the model that is trained."""
        return self.losses(self.model, self.encode_patches, batch)

    def losses(self, model: OwlSwin, encode_patches, batch: DetectBatch) -> dict[str, Tensor]:
        """Losses of boxes and names where these learn, and of the mask branch where it does: each a mean over the
        scenes."""
        device = model.alignment_log_scale.device
        plain = batch.pixels.to(device, non_blocking=True).float() / 255
        pixels = normalise(jitter_colours(plain, batch.colours))
        maps = said = exemplars = None
        with nullcontext() if self.boxes_learn else torch.no_grad():
            maps, patches, stem_map = self._encode(model, encode_patches, pixels)
            images = encode_from_patches(model, patches, (pixels.shape[2], pixels.shape[3]))
            texts = self.bank.embed(model, batch.texts).float()
            if batch.exemplars is not None:
                shown = encode_exemplars(model, encode_patches, batch.exemplars)
                columns = batch.exemplars.labels.to(device)
                exemplars = (shown[: len(columns)].float(), columns)
        if self.masks_learn:
            assert model.masks is not None
            images = replace(images, masks=model.masks(maps, patches))
        warmup = self.config.masks.warmup_steps * self.config.accumulate
        progress = min(batch.index / warmup, 1.0) if warmup else 1.0
        stride = model.config.heads.stride
        centres = cell_centres(images.grid_hw) * stride / torch.tensor([pixels.shape[3], pixels.shape[2]])
        centres = centres.to(device)
        parts: dict[str, Tensor] = {}
        with torch.autocast(device.type, enabled=False):  # a logit needs more than the 3 digits of bfloat16
            if self.naming is not None and stem_map is not None:
                said = self.naming.read(stem_map)
            pictures, scenes = [], []
            if self.together:
                parts = self._losses_together(images, centres, texts, exemplars, batch)
            else:
                pictures = one_by_one(images)
                matched = [self._matched(own, centres, texts, batch, i) for i, own in enumerate(pictures)]
                scenes = [scene for _, scene in matched]
                if self.boxes_learn:
                    logits = [own for own, _ in matched]
                    parts = self._losses_by_scene(pictures, scenes, logits, centres, texts, exemplars, batch)
            total = self._weighted(parts, images, batch, said) if self.boxes_learn else centres.new_zeros(())
            if self.masks_learn:
                taught = branch_losses(
                    pictures, scenes, batch.masks, plain, centres, texts, exemplars, progress, self.config
                )
                total = total + taught.pop("loss")
                parts |= taught
                if self.naming is not None and said is not None:
                    assert images.masks is not None
                    lost = self.naming.dense_loss(said, images.masks.dense.class_embeds, images.grid_hw)
                    total = total + self.config.masks.dense_weight * lost
                    parts["dense_naming"] = lost
        if self.align is not None and batch.align is not None:
            aligned = self.align.losses(model, encode_patches, batch.align)
            total = total + self.config.align_weight * aligned["loss"]
            parts |= {"align": aligned["loss"], **{k: v for k, v in aligned.items() if k in ("accuracy", "dense")}}
        return {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def _encode(
        self, model: OwlSwin, encode_patches, pixels: Tensor
    ) -> tuple[tuple[Tensor, ...] | None, Tensor, Tensor | None]:
        """The maps that masks are made of, fused patches, and what the stem's classifier reads: what this run needs."""
        shared = self.naming is not None and self.naming.stem is None
        if shared and self.masks_learn:
            return model.encode_pyramid_and_stem(pixels)
        if shared:
            return None, *model.encode_patches_and_stem(pixels)
        read = None if self.naming is None else self.naming.own_map(pixels)
        return (*model.encode_pyramid(pixels), read) if self.masks_learn else (None, encode_patches(pixels), read)

    def _matched(
        self, image: ImageEmbeddings, centres: Tensor, texts: Tensor, batch: DetectBatch, place: int
    ) -> tuple[Tensor, MatchedScene]:
        """Logits [P, q] of one scene for the names asked in it, and which patches answer for its boxes."""
        device = centres.device
        asked = batch.asked[place].to(device)
        scores = batch.scores[place].to(device)
        sure, vague = scores > 0, scores == 0
        all_boxes, columns = batch.boxes[place].to(device), batch.labels[place].to(device)
        own = torch.searchsorted(asked, columns[sure])
        boxes, names = merge_same_boxes(all_boxes[sure], own, len(asked), scores=scores[sure])
        logits = raw_logits(image, texts[asked])
        match = self.matcher(centres, logits, image.pred_boxes, names, boxes, self.config.detect)
        rows = sure.nonzero()[:, 0][first_of(boxes, all_boxes[sure])]
        rare = self.name_weights.to(device)[batch.classes.to(device)]
        unsure = all_boxes[vague], columns[vague], vague.nonzero()[:, 0]
        return logits, MatchedScene(asked, rare, boxes, names, rows, match, *unsure)

    def _losses_together(
        self,
        images: ImageEmbeddings,
        centres: Tensor,
        texts: Tensor,
        exemplars: tuple[Tensor, Tensor] | None,
        batch: DetectBatch,
    ) -> dict[str, Tensor]:
        """Class, box, objectness and name losses, each a mean over the scenes, which are matched and asked at once."""
        rare = self.name_weights[batch.classes]
        scenes = pad_scenes(batch.boxes, batch.labels, batch.scores, batch.asked, rare, centres.device)
        return detection_losses(images, scenes, centres, texts, exemplars, self.config.detect)

    def _losses_by_scene(
        self,
        pictures: list[ImageEmbeddings],
        scenes: list[MatchedScene],
        logits: list[Tensor],
        centres: Tensor,
        texts: Tensor,
        exemplars: tuple[Tensor, Tensor] | None,
        batch: DetectBatch,
    ) -> dict[str, Tensor]:
        """The same, one scene after another."""
        lost = [
            self._scene_losses(pictures[i], scene, logits[i], centres, texts, exemplars, batch, i)
            for i, scene in enumerate(scenes)
        ]
        return {name: torch.stack([own[name] for own in lost]).mean() for name in lost[0]}

    def _weighted(
        self, parts: dict[str, Tensor], images: ImageEmbeddings, batch: DetectBatch, said: Tensor | None
    ) -> Tensor:
        """The weighted sum of ``parts``, and of what teachers say, which is added to them."""
        settings = self.config.detect
        weights = {
            "class": settings.class_weight,
            "name": settings.name_weight,
            "l1": settings.l1_weight,
            "giou": settings.giou_weight,
            "objectness": settings.objectness_weight,
            "exemplar": settings.exemplar_weight,
            "embed": self.taught.boxes if self.taught else 0.0,
        }
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        if self.taught is not None and batch.taught is not None:
            parts["image_embed"] = image_embed_loss(images.image_embed, batch.taught)
            total = total + self.taught.image * parts["image_embed"]
        if self.naming is not None and said is not None:
            parts["naming"] = self.naming.losses(said, images.class_embeds, images.image_embed, images.grid_hw)
            total = total + parts["naming"]
        return total

    def _scene_losses(
        self,
        image: ImageEmbeddings,
        scene: MatchedScene,
        logits: Tensor,
        centres: Tensor,
        texts: Tensor,
        exemplars: tuple[Tensor, Tensor] | None,
        batch: DetectBatch,
        place: int,
    ) -> dict[str, Tensor]:
        """The losses of one scene: sums over its patches, divided by the number of matched ones."""
        settings, match = self.config.detect, scene.match
        count = match.weights.sum().clamp(min=1)
        goal = match.weights
        predicted, wanted = image.pred_boxes[match.patches], scene.boxes[match.targets]
        if settings.quality:
            goal = goal * overlap_with_targets(predicted, wanted).clamp(min=LEAST_QUALITY)
        class_targets = torch.zeros_like(logits)
        class_targets[match.patches] = scene.patch_names * goal[:, None]
        object_targets = torch.zeros_like(image.objectness_logits)
        object_targets[match.patches] = goal * scene.certainty()[match.targets]
        share = scene.shares()
        distance, overlap = box_losses(predicted, wanted)
        answers = scene.open_question(centres, class_targets)
        open_places = inside(centres, scene.vague_boxes).any(1) & (object_targets == 0)
        focal = {"alpha": settings.focal_alpha, "gamma": settings.focal_gamma}
        losses = {
            "class": (focal_loss(logits, class_targets, **focal) * answers).sum() / count,
            "l1": (distance * share).sum(),
            "giou": (overlap * share).sum(),
            "objectness": (focal_loss(image.objectness_logits, object_targets, **focal) * ~open_places).sum() / count,
        }
        if settings.name_weight:
            weights = share * scene.rarity()[match.targets]
            cosines = image.class_embeds[match.patches] @ texts[scene.asked].T  # [M, q]
            losses["name"] = name_loss(cosines, scene.patch_names, weights)
        if batch.taught is not None:
            said = batch.taught.boxes[place].to(centres.device)[scene.rows]
            losses["embed"] = embed_loss(image.class_embeds[match.patches], said[match.targets], share)
        if exemplars is not None:
            here, place_of = places_in(scene.asked, exemplars[1])
            logits = raw_logits(image, exemplars[0][here])
            lost = focal_loss(logits, class_targets[:, place_of], **focal) * answers[:, place_of]
            losses["exemplar"] = lost.sum() / count
        return losses
