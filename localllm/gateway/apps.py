from django.apps import AppConfig


class GatewayConfig(AppConfig):
    name = "localllm.gateway"
    label = "gateway"
    verbose_name = "Models and usage"
