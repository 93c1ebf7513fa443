"""Finding trunks that were built before, without TensorFlow. `trunk_builder` builds the others."""

from pydantic import ValidationError

from ray_cluster.vision import weight_files
from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.contracts.jobs import WeightsUri
from services.contracts.models import PREPROCESSING_VERSION, TrunkManifest, TrunkRecipe
from services.runtime.objects.protocol import ObjectStore


def resolve_recipe(recipe: TrunkRecipe) -> TrunkRecipe:
    """The recipe with the sha256 of its weights filled in where they are a file.

    Reads the whole file when the sha256 is not there yet, so keep the result. Raises `WeightsUnusable`.
    """
    weights = recipe.weights
    if not isinstance(weights, WeightsUri) or weights.sha256 is not None:
        return recipe
    hashed = weights.model_copy(update={"sha256": weight_files.hash_uri(weights.uri)})
    return recipe.model_copy(update={"weights": hashed})


def find_trunk(store: ObjectStore, recipe: TrunkRecipe) -> TrunkManifest | None:
    """The trunk that this recipe gave, or None where it has to be built (again).

    Raises `WeightsUnusable` when the recipe names a file without its sha256 and that file cannot be read.
    """
    recipe = resolve_recipe(recipe)
    trunk = _read(store, names.trunk_source(recipe.sha256()))
    if trunk is None or trunk.preprocessing_version != PREPROCESSING_VERSION:
        return None
    if recipe.weights == "bundled" and trunk.weights_sha256 != weight_files.hash_file(weight_files.BUNDLED_WEIGHTS):
        return None  # an earlier release bundled other weights
    return trunk if is_complete(store, trunk) else None


def read_trunk(store: ObjectStore, trunk_id: TrunkId) -> TrunkManifest | None:
    """The trunk of that id, or None where there is none or its objects are gone."""
    trunk = _read(store, names.trunk_manifest(trunk_id))
    return trunk if trunk is not None and is_complete(store, trunk) else None


def is_complete(store: ObjectStore, trunk: TrunkManifest) -> bool:
    """Whether every object of the manifest is there with its size. Contents are verified when they are read."""
    refs = [*trunk.artefacts.values(), *(ref for ref in (trunk.top, trunk.upper, trunk.network) if ref is not None)]
    infos = [store.head(ref.key) for ref in refs]
    return all(info is not None and info.size_bytes == ref.size_bytes for ref, info in zip(refs, infos, strict=True))


def _read(store: ObjectStore, key: str) -> TrunkManifest | None:
    try:
        return TrunkManifest.model_validate_json(store.get(key))
    except NotFound:
        return None
    except ValidationError:
        return None  # written by a release that knew other fields: as good as absent
