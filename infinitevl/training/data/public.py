"""Public sources by name, sorted into categories, and mixtures of them by share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from infinitevl.errors import InputError
from infinitevl.training.data.adapters import ADAPTERS
from infinitevl.training.data.mixture import Mixture
from infinitevl.training.data.source import Samples
from infinitevl.training.settings import Strict


class PublicSource(Strict):
    """Subsets of one dataset of the hub, or of a folder, whose rows have one form."""

    dataset: str = Field(description="Name on the hub, or a folder that `datasets` can load.")
    subsets: list[str] = Field(["default"], min_length=1, description="Which of its subsets.")
    split: str = Field("train", description="Which part of each subset.")
    adapter: str = Field(description="How its rows become messages.")
    root: str = Field(".", description="Folder below which the paths in its rows lie; {subset} is replaced.")

    @field_validator("adapter")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ADAPTERS:
            raise ValueError(f"unknown adapter {name!r}; valid are {', '.join(ADAPTERS)}")
        return name


class MixtureSettings(Strict):
    """What an epoch is made of."""

    samples: PositiveInt = Field(description="Samples of an epoch.")
    shares: dict[str, PositiveFloat] = Field(
        min_length=1, description="Of each category, in any unit; its sources share it by their rows."
    )


class PublicData(Strict):
    """A file of sources and mixtures."""

    categories: dict[str, list[PublicSource]] = Field(description="Sources by what they teach.")
    mixtures: dict[str, MixtureSettings] = Field(description="Mixtures by name.")

    @model_validator(mode="after")
    def _shares_have_sources(self) -> "PublicData":
        for name, mixture in self.mixtures.items():
            if unknown := sorted(
                set(mixture.shares) - {each for each, found in self.categories.items() if found}
            ):
                raise ValueError(f"mixture {name!r} has shares of {unknown}, which have no sources")
        return self


Load = Callable[[PublicSource, str], Any]


def read_public_data(path: str | Path) -> PublicData:
    """Reads a file such as recipes/4b/data.yaml; InputError names what is unknown, missing or wrong."""
    try:
        return PublicData.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise InputError(f"{path}: {'; '.join(problems)}") from error


def load_subset(source: PublicSource, subset: str) -> Any:
    """Loads the rows of one subset; downloads it once."""
    import datasets

    return datasets.load_dataset(source.dataset, subset, split=source.split)


def open_mixture(data: PublicData, name: str, seed: int, load: Load = load_subset) -> Mixture:
    """Opens the samples of one mixture.

    Raises:
        InputError: there is no such mixture.
    """
    if name not in data.mixtures:
        raise InputError(f"There is no mixture {name!r}; valid are {', '.join(data.mixtures)}.")
    wanted = data.mixtures[name]
    sources: list[Samples] = []
    weights: list[float] = []
    for category, share in wanted.shares.items():
        found = [each for listed in data.categories[category] for each in _opened(listed, load)]
        num_rows = sum(map(len, found))
        sources += found
        weights += [share * len(source) / max(num_rows, 1) for source in found]
    return Mixture(sources, seed, weights, wanted.samples)


def _opened(listed: PublicSource, load: Load) -> list[Samples]:
    adapter = ADAPTERS[listed.adapter]
    return [
        Samples(
            f"{listed.dataset}/{subset}/{listed.split}",
            load(listed, subset),
            adapter,
            Path(listed.root.format(subset=subset)),
        )
        for subset in listed.subsets
    ]
