"""From the names of defences to the chains of operations that they put before the classifier."""

from collections.abc import Iterable, Iterator, Sequence

from sfm_tf.defences.catalogue import ALL, DEFENCES, FITTED, MADE, TRAINED, expand
from sfm_tf.defences.settings import ComparedConfig
from sfm_tf.errors import SfmError
from sfm_tf.preprocessors.chain import OPERATIONS, operation_name, split_chain


def defence_chain(name: str, config: ComparedConfig) -> str:
    """Returns the chain of operations that a defence puts in front of the classifier.

    Args:
        name: One of `DEFENCES` but `TRAINED`, or a chain of them and of operations joined by `+`.
        config: What the defences are made of.

    Returns:
        Specification for `preprocessors.chain.parse_preprocessor`.

    Raises:
        SfmError: If the name is of a trained defence: it is no chain.
    """
    parts = list(_chain_parts(name, config))
    return "+".join(parts) or "none"


def _chain_parts(name: str, config: ComparedConfig) -> Iterator[str]:
    for part in name.split("+"):
        if part in TRAINED:
            raise SfmError(
                f"Invalid defence {name!r}: {part} cannot be part of a chain. Name it alone, and "
                "choose its pre-processing with --preprocessor when it is trained."
            )
        defence = DEFENCES.get(part)
        chain = defence.chain(config) if defence else part
        yield from split_chain(chain)


def check_defences(names: Iterable[str], config: ComparedConfig) -> None:
    """Raises `SfmError` for the first name that is of no defence."""
    known = (*OPERATIONS, *MADE)
    for name in expand(names):
        chain = "none" if name in TRAINED else defence_chain(name, config)
        for part in split_chain(chain):
            if operation_name(part) not in known:
                raise SfmError(
                    f"Unknown defence {part!r}; expected {ALL}, one of {', '.join(DEFENCES)}, or a "
                    f"chain joined by '+' of them and of {', '.join(known)} with their parameters."
                )


def fits_needed(names: Sequence[str], config: ComparedConfig) -> tuple[str, ...]:
    """Returns the operations, of `FITTED`, that have to be fitted before these defences run.

    Raises:
        SfmError: If there is no such defence.
    """
    check_defences(names, config)
    chains = [defence_chain(name, config) for name in expand(names) if name not in TRAINED]
    used = {operation_name(part) for chain in chains for part in split_chain(chain)}
    return tuple(name for name in FITTED if name in used)
