"""The methods as one explicit table: label, year, group, where the classes live.

Nothing here imports torch: `load` imports a method's module when it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from harness.errors import unknown

if TYPE_CHECKING:
    from models.interface import ModelConfig, Recommender


class Group(Enum):
    """The groups of the paper's Table 2, headings as printed; reference rows stand below them."""

    traditional = "Traditional Sequential Recommendation Methods"
    multimodal = "Multi-modal Sequential Recommendation Methods"
    multibehavior = "Multi-behavior Sequential Recommendation Methods"
    ours = "Ours"
    reference = "Reference rows"


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 2, built here or not."""

    label: str
    year: int
    group: Group

    @property
    def printed(self) -> str:
        """The row's name as Table 2 prints it: `SASRec (2018)`, but `M3BSR` without a year."""
        return self.label if self.group is Group.ours else f"{self.label} ({self.year})"

    @property
    def built(self) -> bool:
        """True when METHODS has this row."""
        return any(method.label == self.label for method in METHODS)


@dataclass(frozen=True)
class Method:
    """A method that can be run."""

    key: str
    """Its name on the command line."""
    label: str
    """Its name in the paper's tables, without the year."""
    year: int | None
    group: Group
    module: str
    model: str
    """Class in `module`, a Recommender."""
    config: str
    """Class in `module`, a ModelConfig dataclass."""
    note: str = ""
    """What a table has to say about the row (a reconstruction, say)."""
    trained: bool = True
    """False: no randomness, so one run says all."""

    @property
    def printed(self) -> str:
        """Its name in every table."""
        return printed(self.label, self.note)

    def load(self) -> tuple[type[Recommender], type[ModelConfig]]:
        """The model class and its config class; imports torch."""
        module = importlib.import_module(self.module)
        return getattr(module, self.model), getattr(module, self.config)


def printed(label: str, note: str) -> str:
    """`M3SRec (reconstruction)` for a method that was built without its authors' code."""
    return f"{label} (reconstruction)" if "reconstruction" in note.lower() else label


PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow("GRU4Rec", 2015, Group.traditional),
    PaperRow("SASRec", 2018, Group.traditional),
    PaperRow("BERT4Rec", 2019, Group.traditional),
    PaperRow("STOSA", 2022, Group.traditional),
    PaperRow("SSDRec", 2024, Group.traditional),
    PaperRow("MISSRec", 2023, Group.multimodal),
    PaperRow("MMSBR", 2023, Group.multimodal),
    PaperRow("MMMLP", 2023, Group.multimodal),
    PaperRow("M3SRec", 2023, Group.multimodal),
    PaperRow("CMCLRec", 2024, Group.multimodal),
    PaperRow("NMTR", 2019, Group.multibehavior),
    PaperRow("DIPN", 2019, Group.multibehavior),
    PaperRow("SGDL", 2022, Group.multibehavior),
    PaperRow("MB-STR", 2022, Group.multibehavior),
    PaperRow("KMCLR", 2023, Group.multibehavior),
    PaperRow("EBM", 2024, Group.multibehavior),
    PaperRow("M3BSR", 2025, Group.ours),
)
"""All 17 rows of Table 2 in its order, years as printed (M3BSR: that of the paper)."""


METHODS: tuple[Method, ...] = (
    Method(
        "gru4rec", "GRU4Rec", 2015, Group.traditional,
        "baselines.gru4rec", "GRU4Rec", "GRU4RecConfig",
    ),
    Method(
        "sasrec", "SASRec", 2018, Group.traditional,
        "baselines.sasrec", "SASRec", "SASRecConfig",
    ),
    Method(
        "bert4rec", "BERT4Rec", 2019, Group.traditional,
        "baselines.bert4rec", "BERT4Rec", "BERT4RecConfig",
    ),
    Method(
        "stosa", "STOSA", 2022, Group.traditional,
        "baselines.stosa", "STOSA", "STOSAConfig",
    ),
    Method(
        "ssdrec", "SSDRec", 2024, Group.traditional,
        "baselines.ssdrec", "SSDRec", "SSDRecConfig",
    ),
    Method(
        "missrec", "MISSRec", 2023, Group.multimodal,
        "baselines.missrec", "MISSRec", "MISSRecConfig",
        "trained from scratch, a setting of its authors: their pre-training corpora do not exist here",
    ),
    Method(
        "mmsbr", "MMSBR", 2023, Group.multimodal,
        "baselines.mmsbr", "MMSBR", "MMSBRConfig",
        "an item's other vector stands in for the pseudo modalities; no price, so no numeric branch; its start is "
        "repaired (LayerNorms at 1 and 0, gate above 0), as half of the published draws never learn",
    ),
    Method(
        "mmmlp", "MMMLP", 2023, Group.multimodal,
        "baselines.mmmlp", "MMMLP", "MMMLPConfig",
    ),
    Method(
        "m3srec", "M3SRec", 2023, Group.multimodal,
        "baselines.m3srec", "M3SRec", "M3SRecConfig",
        "reconstruction from the abstract: neither code nor full text of the paper is public; CLIP "
        "vectors in place of its encoders",
    ),
    Method(
        "cmclrec", "CMCLRec", 2024, Group.multimodal,
        "baselines.cmclrec", "CMCLRec", "CMCLRecConfig",
        "reconstruction from the abstract: neither code nor full text of the paper is public; image and "
        "text of the history in place of user features, users with few events in place of none",
    ),
    Method(
        "nmtr", "NMTR", 2019, Group.multibehavior,
        "baselines.nmtr", "NMTR", "NMTRConfig",
    ),
    Method(
        "dipn", "DIPN", 2019, Group.multibehavior,
        "baselines.dipn", "DIPN", "DIPNConfig",
        "reconstruction: no code is public; the candidate enters in its towers, and there are no touch "
        "events",
    ),
    Method(
        "sgdl", "SGDL", 2022, Group.multibehavior,
        "baselines.sgdl", "SGDL", "SGDLConfig",
        "one behaviour: clicks and favors are one matrix, so the target behaviour is not represented; "
        "static users, no history, image or text",
    ),
    Method(
        "mbstr", "MB-STR", 2022, Group.multibehavior,
        "baselines.mbstr", "MBSTR", "MBSTRConfig",
    ),
    Method(
        "kmclr", "KMCLR", 2023, Group.multibehavior,
        "baselines.kmclr", "KMCLR", "KMCLRConfig",
        "no knowledge graph exists: triples from brand, seller and category (Rec-Tmall), or from clusters "
        "of the frozen image and text vectors (Kuaishou)",
    ),
    Method(
        "ebm", "EBM", 2024, Group.multibehavior,
        "baselines.ebm", "EBM", "EBMConfig",
        "reconstruction of the paper's form (END4Rec) from its abstract, an overview and a third party's "
        "code: the authors' release neither runs nor follows the paper",
    ),
    Method(
        "m3bsr", "M3BSR", 2025, Group.ours,
        "models.m3bsr", "M3BSR", "M3BSRConfig",
    ),
)  # fmt: skip
"""The paper's methods that are built, in the order of its Table 2."""


def _reference(label: str, note: str) -> Method:
    """A row of baselines/reference.py; the class is called like the label."""
    module, config = "baselines.reference", "ReferenceConfig"
    return Method(label.lower(), label, None, Group.reference, module, label, config, note, False)


REFERENCES: tuple[Method, ...] = (
    Method(
        "sasrec_ce", "SASRec (CE)", None, Group.reference,
        "baselines.sasrec", "SASRec", "SASRecCEConfig",
        "SASRec trained with the cross-entropy over all items: the plain model to beat",
    ),
    _reference("Random", "constant scores: the exact expectation over tie orders"),
    _reference("MostPopular", "training events of an item, counted"),
    _reference("LastClick", "latest item of the history first"),
    _reference("Markov", "neighbour counts of the last three items"),
    _reference("ItemKNN", "co-occurrence with every item of the history"),
)  # fmt: skip
"""The floor under every table (protocol, Reference rows)."""


def find(name: str) -> Method:
    """The method or reference row of this key or label, whatever its case.

    Raises:
        InputError: no such method.
    """
    wanted = name.strip().lower()
    for method in METHODS + REFERENCES:
        if wanted in (method.key, method.label.lower()):
            return method
    keys = [method.key for method in METHODS + REFERENCES]
    raise unknown("method", name, keys)


def select(names: Iterable[str]) -> tuple[Method, ...]:
    """The methods of these keys or labels, each once, in the order of the tables.

    Raises:
        InputError: as `find`.
    """
    wanted = {find(name).key for name in names}
    return tuple(method for method in METHODS + REFERENCES if method.key in wanted)
