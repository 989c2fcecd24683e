"""The rows every app shares."""

from localllm.gateway.models.api_key import ApiKey
from localllm.gateway.models.download import Download
from localllm.gateway.models.experiment import Experiment, Variant
from localllm.gateway.models.feedback import Feedback
from localllm.gateway.models.job import Job
from localllm.gateway.models.language_model import FileVersion, LanguageModel
from localllm.gateway.models.prompt_template import PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.replay import Replay
from localllm.gateway.models.trial import Trial, TrialAnswer
from localllm.gateway.models.upload import Upload
from localllm.gateway.models.usage import LoggedSchema, UsageLog

__all__ = [
    "ApiKey",
    "Download",
    "Experiment",
    "Feedback",
    "FileVersion",
    "Job",
    "LanguageModel",
    "LoggedSchema",
    "PromptTemplate",
    "PromptTemplateVersion",
    "Replay",
    "Trial",
    "TrialAnswer",
    "Upload",
    "UsageLog",
    "Variant",
]
