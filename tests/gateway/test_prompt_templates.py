"""Prompt templates as rows: variants by family, versions that never change, shipped ones that keep up."""

import pytest

from localllm.gateway.models import LanguageModel, PromptTemplate, PromptTemplateVersion
from localllm.gateway.models.prompt_template import USE_CASES, install_shipped
from localllm.inference.prompt_template import Template, TemplateError

pytestmark = pytest.mark.django_db


def model(description="llama, 3M parameters, Q8_0", **fields):
    return LanguageModel(description=description, **fields)


@pytest.mark.parametrize(
    ("row", "family"),
    [
        (model("qwen2, 494M parameters, Q4_K_M", name="mistral-like"), "qwen2"),
        (model(name="smollm2"), "llama"),
        (model(name="m7", repository="bartowski/Mistral-7B-Instruct-v0.3-GGUF"), "mistral"),
        (model("mistral3, 8,000M parameters, Q4_K_M"), "mistral"),
        (model("", path="/models/mixtral.gguf"), "mistral"),
    ],
)
def test_it_tells_the_family_of_a_model(row, family):
    assert row.family == family


def test_a_family_has_its_own_variant_and_others_fall_back():
    mistral = PromptTemplate.objects.for_use("rag_query", model(name="mistral-7b"))
    assert mistral.template.family == "mistral"
    assert PromptTemplate.objects.for_use("rag_query", model()).template.family == ""
    assert PromptTemplate.objects.for_use("title", model(name="mistral-7b")).template.family == ""


def test_every_use_case_is_shipped_and_renders_with_its_samples():
    for use_case, about in USE_CASES.items():
        for template in PromptTemplate.objects.filter(use_case=use_case, is_shipped=True):
            version = template.current_version
            Template(version.text).check(about.samples)
            assert version.render(about.samples)
    assert set(PromptTemplate.objects.values_list("name", flat=True)) == set(USE_CASES)


def test_a_version_never_changes():
    version = PromptTemplate.objects.for_use("title", model())
    version.text = "Other"
    with pytest.raises(TypeError, match="never changes"):
        version.save()


def test_a_new_version_counts_once_it_is_made_current_and_the_old_one_can_come_back():
    template = PromptTemplate.objects.get(name="title")
    old, new = template.current_version, template.add_version("{{ question }}?")
    assert PromptTemplate.objects.for_use("title", model()) == old
    template.make_current(new)
    assert PromptTemplate.objects.for_use("title", model()) == new
    template.make_current(old)
    assert PromptTemplate.objects.for_use("title", model()) == old


def test_rendering_names_a_missing_variable():
    with pytest.raises(TemplateError, match="“answer”"):
        PromptTemplate.objects.for_use("title", model()).render({"question": "Why?"})


def test_a_release_updates_shipped_texts_and_leaves_own_ones_current():
    edited, untouched = PromptTemplate.objects.get(name="title"), PromptTemplate.objects.get(name="routing")
    own = edited.add_version("My own {{ question }}")
    edited.make_current(own)
    PromptTemplateVersion.objects.filter(is_shipped=True).update(text="What an older release said")
    install_shipped(PromptTemplate.objects, PromptTemplateVersion.objects)
    edited.refresh_from_db(), untouched.refresh_from_db()
    assert edited.current == own and edited.versions.count() == 3
    assert untouched.current_version.number == 2 and untouched.current_version.is_shipped
