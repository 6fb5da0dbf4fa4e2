"""The exceptions users of the SDK meet: one tree, with the headline each is printed under.

What turns a Rust error into one of these lives in `_native`; how they are printed, in `_failure`.

MetaflowException
├── CommandException
├── ExternalCommandFailed
├── LintWarn
│   └── PyLintWarn
├── InvalidNextException
├── InvalidDecoratorAttribute
├── UnknownStepDecoratorException
├── DuplicateStepDecoratorException
├── BadStepDecoratorException
├── UnknownFlowDecoratorException
├── DuplicateFlowDecoratorException
├── BadFlowDecoratorException
├── ParameterFieldFailed
├── ParameterFieldTypeMismatch
├── InvalidEnvironmentException
├── MetaflowUnknownUser
├── MetaflowInternalError
├── MetaflowNotFound
├── MetaflowNamespaceMismatch
├── MetaflowInvalidPathspec
├── MetaflowTaggingError
├── MetaflowDataMissing
├── DataException
├── UnpicklableArtifactException
├── UnhandledInMergeArtifactsException
├── MissingInMergeArtifactsException
├── TaskFailed
├── TimeoutException
├── FailureHandledByCatch
├── MulticoreException
├── ServiceException
├── KubernetesException
│   ├── KubernetesKilledException
│   └── KubernetesJobException
├── BatchException
│   ├── BatchKilledException
│   └── BatchJobException
├── MetaflowS3Exception
│   ├── MetaflowS3URLException
│   ├── MetaflowS3NotFound
│   ├── MetaflowS3AccessDenied
│   ├── MetaflowS3InvalidObject
│   ├── MetaflowS3InvalidRange
│   └── MetaflowS3InsufficientDiskSpace
├── CardNotPresentException
└── NotInThisVersion

`MetaflowExceptionWrapper` is no exception: it is what an artifact keeps of one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BadFlowDecoratorException",
    "BadStepDecoratorException",
    "BatchException",
    "BatchJobException",
    "BatchKilledException",
    "CardNotPresentException",
    "CommandException",
    "DataException",
    "DuplicateFlowDecoratorException",
    "DuplicateStepDecoratorException",
    "ExternalCommandFailed",
    "FailureHandledByCatch",
    "InvalidDecoratorAttribute",
    "InvalidEnvironmentException",
    "InvalidNextException",
    "KubernetesException",
    "KubernetesJobException",
    "KubernetesKilledException",
    "LintWarn",
    "MetaflowDataMissing",
    "MetaflowException",
    "MetaflowExceptionWrapper",
    "MetaflowInternalError",
    "MetaflowInvalidPathspec",
    "MetaflowNamespaceMismatch",
    "MetaflowNotFound",
    "MetaflowS3AccessDenied",
    "MetaflowS3Exception",
    "MetaflowS3InsufficientDiskSpace",
    "MetaflowS3InvalidObject",
    "MetaflowS3InvalidRange",
    "MetaflowS3NotFound",
    "MetaflowS3URLException",
    "MetaflowTaggingError",
    "MetaflowUnknownUser",
    "MissingInMergeArtifactsException",
    "MulticoreException",
    "NotInThisVersion",
    "ParameterFieldFailed",
    "ParameterFieldTypeMismatch",
    "PyLintWarn",
    "ServiceException",
    "TaskFailed",
    "TimeoutException",
    "UnhandledInMergeArtifactsException",
    "UnknownFlowDecoratorException",
    "UnknownStepDecoratorException",
    "UnpicklableArtifactException",
]


class MetaflowException(Exception):
    """Base of all exceptions of this package; users may raise and subclass it.

    It is printed as its headline, the place in the user's source if there is one, and the message.
    """

    headline = "Flow failed"
    # For subclasses whose constructor does not call this one's.
    message = ""
    line_no: int | None = None
    source_file: str | None = None

    def __init__(
        self, msg: object = "", lineno: int | None = None, source_file: str | None = None
    ) -> None:
        self.message = str(msg)
        self.line_no = lineno
        self.source_file = source_file
        super().__init__(msg)

    def __str__(self) -> str:
        place = f" on line {self.line_no}" if self.line_no is not None else ""
        if self.source_file:
            place = f" in file {self.source_file}{place}"
        text = self.message or super().__str__()
        return f"{self.headline}{place}: {text}" if place else text

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses have signatures of their own: rebuild without calling them.
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(
    cls: type[MetaflowException], args: tuple[object, ...], state: dict[str, object]
) -> MetaflowException:
    exception = cls.__new__(cls, *args)
    exception.args = args
    exception.__dict__.update(state)
    return exception


class CommandException(MetaflowException):
    """A command was given arguments of the wrong shape."""

    headline = "Invalid command"


class ExternalCommandFailed(MetaflowException):
    """A program started on behalf of the flow failed."""

    headline = "External command failed"


class LintWarn(MetaflowException):
    """The flow breaks a rule of the graph checker."""

    headline = "Validity checker found an issue"


class PyLintWarn(LintWarn):
    """Kept for code that names it; pylint is not run."""

    headline = "Pylint is not happy"


class InvalidNextException(MetaflowException):
    """`self.next` was called in a way that no transition follows from."""

    headline = "Invalid self.next() transition detected"


class InvalidDecoratorAttribute(MetaflowException):
    """A decorator does not take the attribute it was given."""

    headline = "Unknown decorator attribute"


class UnknownStepDecoratorException(MetaflowException):
    """No step decorator has this name."""

    headline = "Unknown step decorator"


class DuplicateStepDecoratorException(MetaflowException):
    """A step has the same decorator twice."""

    headline = "Duplicate decorators"


class BadStepDecoratorException(MetaflowException):
    """A step decorator was put on something that is not a step, or was called wrongly."""

    headline = "Syntax error"


class UnknownFlowDecoratorException(MetaflowException):
    """No flow decorator has this name."""

    headline = "Unknown flow decorator"


class DuplicateFlowDecoratorException(MetaflowException):
    """A flow has the same decorator twice."""

    headline = "Duplicate decorators"


class BadFlowDecoratorException(MetaflowException):
    """A flow decorator was put on something that is not a flow, or was called wrongly."""

    headline = "Syntax error"


class ParameterFieldFailed(MetaflowException):
    """A function given as a parameter's default raised."""

    headline = "Parameter field failed"


class ParameterFieldTypeMismatch(MetaflowException):
    """A parameter's field has a value of the wrong type."""

    headline = "Parameter field with a mismatching type"


class InvalidEnvironmentException(MetaflowException):
    """The environment asked for cannot be used here."""

    headline = "Incompatible environment"


class MetaflowUnknownUser(MetaflowException):
    """Nothing says who the user is."""

    headline = "Unknown user"


class MetaflowInternalError(MetaflowException):
    """A broken promise of ours, never a mistake of the user."""

    headline = "Internal error"


class MetaflowNotFound(MetaflowException):
    """The flow, run, step, task or artifact does not exist."""

    headline = "Object not found"


class MetaflowNamespaceMismatch(MetaflowException):
    """The object exists, but outside the current namespace."""

    headline = "Object not in the current namespace"


class MetaflowInvalidPathspec(MetaflowException):
    """The path has the wrong number of parts."""

    headline = "Invalid pathspec"


class MetaflowTaggingError(MetaflowException):
    """A tag breaks a rule."""

    headline = "Tagging error"


class MetaflowDataMissing(MetaflowException):
    """A join did not get all of its inputs."""

    headline = "Data missing"


class DataException(MetaflowException):
    """Artifacts cannot be read or written."""

    headline = "Data store error"


class UnpicklableArtifactException(MetaflowException):
    """An artifact's value cannot be stored."""

    headline = "Cannot pickle artifact"


class _ArtifactNamesException(MetaflowException):
    def __init__(self, msg: object, artifact_names: Iterable[str] = ()) -> None:
        super().__init__(msg)
        self.artifact_names = list(artifact_names)


class UnhandledInMergeArtifactsException(_ArtifactNamesException):
    """Inputs of a join disagree on the artifacts in `artifact_names`."""

    headline = "Unhandled artifacts in merge"


class MissingInMergeArtifactsException(_ArtifactNamesException):
    """No input of a join has the artifacts in `artifact_names`."""

    headline = "Missing artifacts in merge"


class TaskFailed(MetaflowException):
    """A task failed for good, and with it the run."""

    headline = "Step failure"


class TimeoutException(MetaflowException):
    """A step ran longer than its `@timeout` allows."""

    headline = "@timeout"


class FailureHandledByCatch(MetaflowException):
    """A task's process died in every attempt; `@catch` lets the run go on."""

    headline = "Task execution failed but @catch handled it"


class MulticoreException(MetaflowException):
    """A process of `parallel_map` failed."""

    headline = "Child failed"


class ServiceException(MetaflowException):
    """The metadata service did not do as asked."""

    headline = "Metaflow service error"


class KubernetesException(MetaflowException):
    """Kubernetes cannot do what was asked."""

    headline = "Kubernetes error"


class KubernetesKilledException(KubernetesException):
    """The task's pod was killed."""

    headline = "Kubernetes Batch job killed"


class KubernetesJobException(KubernetesException):
    """The task's job is not accepted."""

    headline = "Kubernetes job error"


class BatchException(MetaflowException):
    """AWS Batch cannot do what was asked."""

    headline = "AWS Batch error"


class BatchKilledException(BatchException):
    """The task's job was killed."""

    headline = "AWS Batch task killed"


class BatchJobException(BatchException):
    """The task's job is not accepted."""

    headline = "AWS Batch job error"


class MetaflowS3Exception(MetaflowException):
    """S3 cannot be reached or refused."""

    headline = "S3 access failed"


class MetaflowS3URLException(MetaflowS3Exception):
    """The address is not one of S3."""

    headline = "Invalid address"


class MetaflowS3NotFound(MetaflowS3Exception):
    """The object does not exist."""

    headline = "S3 object not found"


class MetaflowS3AccessDenied(MetaflowS3Exception):
    """The object may not be read or written with these credentials."""

    headline = "S3 access denied"


class MetaflowS3InvalidObject(MetaflowS3Exception):
    """What was to be put is neither text, bytes nor a binary file."""

    headline = "Not a string-like object"


class MetaflowS3InvalidRange(MetaflowS3Exception):
    """The range lies outside the object."""

    headline = "S3 invalid range"


class MetaflowS3InsufficientDiskSpace(MetaflowS3Exception):
    """The local disk cannot hold the object."""

    headline = "Insufficient disk space"


class CardNotPresentException(MetaflowException):
    """The task has no such card."""

    headline = "MetaflowCard not found"


class NotInThisVersion(MetaflowException):
    """A name of Metaflow that imports but whose work comes in a later version."""

    headline = "Not in this version"


class MetaflowExceptionWrapper:
    """What is kept of an exception in an artifact: plain text, so that it always can be stored and
    read again without the classes it was made from.

    `type` is like `builtins.ValueError`, `exception` the message, `stacktrace` the traceback.
    """

    def __init__(
        self, exception: str = "", *, type_text: str = "", stacktrace: str | None = None
    ) -> None:
        self.type = type_text
        self.exception = exception
        self.stacktrace = stacktrace

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MetaflowExceptionWrapper) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.type, self.exception))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type}: {self.exception}>"

    def __str__(self) -> str:
        return self.stacktrace or f"{self.type}: {self.exception}"
