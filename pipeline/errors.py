"""What can go wrong, by who has to act on it.

Every message has three parts: what was given, what was expected, what to do. Errors cross process borders, so each is built
from one string and pickles.
"""


class PipelineError(Exception):
    """Root of every error that this project raises on purpose; anything else is a bug."""


class SpecError(PipelineError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class WindowError(PipelineError, ValueError):
    """A window has no pixels, or lies where none may be."""


class SourceError(PipelineError, OSError):
    """The scene cannot be opened, is damaged, or is not what the model needs."""


class WeightsError(PipelineError, ValueError):
    """A checkpoint is damaged, is of an unknown form, or does not fit the network."""


class UnknownModelError(PipelineError, LookupError):
    """No model of that name is shipped and no file of that path exists."""


class StoreError(PipelineError, OSError):
    """The output cannot be created, written or read."""


class StoreMismatchError(PipelineError, ValueError):
    """An output exists that another input, model or setting made."""


class MemoryBudgetError(PipelineError, ValueError):
    """One block needs more memory than a worker has."""


class LockedError(PipelineError, RuntimeError):
    """Another process is working on the same output."""


class UnfitWorkersError(PipelineError, RuntimeError):
    """No worker of a running cluster can do the job: other versions, or files that it does not see."""


class ClusterLostError(PipelineError, ConnectionError):
    """The scheduler of a running cluster went away."""


class MissingDependencyError(PipelineError, ImportError):
    """An optional library is needed and not installed."""


class BlockError(PipelineError, RuntimeError):
    """One block failed; the message carries the block and the cause."""
