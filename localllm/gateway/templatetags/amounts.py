"""Amounts in templates: `{{ bytes|size }}`, `{{ seconds|duration }}`, `{{ tokens|num }}`, `{{ count|parameters }}`."""

from django import template

from localllm.inference import amounts

register = template.Library()
register.filter("size", amounts.size)
register.filter("duration", amounts.duration)
register.filter("num", amounts.number)
register.filter("parameters", amounts.parameters)
