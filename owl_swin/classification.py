"""Classes of whole pictures: told by texts in templates, or shown by examples."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.encoded import EncodedImage
from owl_swin.errors import QueryError, brief
from owl_swin.exemplar import Exemplar, picture_of
from owl_swin.models.network import Spec
from owl_swin.queries import Query, as_query
from owl_swin.tokenizer import clean_text
from owl_swin.types import QueryEmbeddings

# Averaged by classify(); the text encoder knows them from its training.
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a close-up of a {}")


def check_sees_whole(spec: Spec) -> None:
    """Refuses, with QueryError, a model whose embedding of whole pictures means nothing."""
    if not spec.has_image_embed:
        raise QueryError(
            f"the model {spec.name} was never trained to compare whole pictures with texts (no {spec.family} "
            "checkpoint is); detect what is in the picture, or classify with an OWL-ViT checkpoint or a model of ours"
        )


def check_classes(names: Any, templates: Sequence[str]) -> list[Query]:
    """The classes, all of texts or all of examples; what makes no classes raises QueryError.

    Refused are a single name that is no list, no names, templates without a place for the name, classes of both kinds,
    negatives, and texts beside examples.
    """
    if isinstance(names, str):
        raise QueryError(f"names must be a list of texts, got the single text {brief(names)}; write [{brief(names)}]")
    if isinstance(names, (Exemplar, Query)):
        kind = type(names).__name__
        raise QueryError(f"names must be a list, got a single {kind}; write [{kind.lower()}]")
    if not isinstance(names, Iterable):
        raise QueryError(f"names must be a list of texts, Exemplars or Queries, got {type(names).__name__}")
    if not templates or not all(isinstance(template, str) and "{}" in template for template in templates):
        raise QueryError(f"every template must hold {{}} where the name goes, got {brief(list(templates))}")
    classes = [as_query(name) for name in names]
    if not classes:
        raise QueryError("the list of names is empty; give the names that the picture may have")
    for one in classes:
        if one.negatives or (one.texts and one.exemplars):
            raise QueryError(
                f"a class of whole pictures is texts or examples alone; the query {brief(one.name)} has other parts"
            )
    if len({bool(one.exemplars) for one in classes}) > 1:
        raise QueryError("pictures are told apart by texts or by examples; these classes are of both kinds")
    return classes


def class_means(
    classes: Sequence[Query],
    templates: Sequence[str],
    encode_images: Callable[[Iterable[Any]], Sequence[EncodedImage]],
    encode_texts: Callable[[Sequence[str]], QueryEmbeddings],
) -> Tensor:
    """Unit embeddings [N, E] of the classes: the mean of those of its examples, or of its texts in all templates."""
    if classes[0].exemplars:
        sizes = [len(one.exemplars) for one in classes]
        pictures = (picture_of(example) for one in classes for example in one.exemplars)
        embeds = torch.stack([one.embeddings.image_embed for one in encode_images(pictures)])
    else:
        texts, sizes = prompts(classes, templates)
        embeds = encode_texts(texts).query_embeds
    return F.normalize(torch.stack([part.mean(0) for part in embeds.split(sizes)]), dim=-1)


def class_probabilities(means: Tensor, image_embed: Tensor, spec: Spec) -> Tensor:
    """Probabilities [N] of classes [N, E] for a picture [E]: CLIP's softmax over their cosines."""
    return (spec.alignment_scale * (means @ image_embed)).softmax(-1)


def prompts(classes: Sequence[Query], templates: Sequence[str]) -> tuple[list[str], list[int]]:
    """Every text of every class in every template, and how many of them belong to each class."""
    texts = [[clean_text(text) for text in one.texts] for one in classes]
    made = [template.replace("{}", text) for own in texts for text in own for template in templates]
    return made, [len(own) * len(templates) for own in texts]
