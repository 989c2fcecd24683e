"""Amounts in templates.

`{{ bytes|size }}`, `{{ seconds|duration }}`, `{{ tokens|num }}`, `{{ tokens_per_s|pace }}`, `{{ count|parameters }}`.
"""

from django import template

from localllm.inference import amounts

register = template.Library()
register.filter("size", amounts.size)
register.filter("duration", amounts.duration)
register.filter("pace", amounts.pace)
register.filter("num", amounts.number)
register.filter("parameters", amounts.parameters)
