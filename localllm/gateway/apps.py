from django.apps import AppConfig


class GatewayConfig(AppConfig):
    name = "localllm.gateway"
    label = "gateway"
    verbose_name = "Models and usage"

    def ready(self) -> None:
        from localllm.gateway import checks  # noqa: F401 - importing it registers them
