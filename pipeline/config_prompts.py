"""The recipe's prompts: triggers, and who writes the captions."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config_types import Count, Positive, Section, Weight


class EndpointSettings(Section):
    """A vision-language model behind an OpenAI-compatible endpoint (Qwen-VL, vLLM).

    url: up to ``/v1``; key_env: the environment variable that holds its key, if it wants one;
    concurrency: requests in flight, of ``actors`` in all; timeout: seconds without a byte;
    retries: of a request that fails; asks: of a question whose answers are unusable; price: USD
    for a million tokens (in, out).
    """

    # No user:password@ in it: addresses are shown, keys never.
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$", max_length=2048)]
    model: Annotated[str, Field(pattern=r"\S", max_length=256)]
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "OPENAI_API_KEY"
    requests_per_minute: Annotated[float, Field(gt=0, le=10**6)] = 600.0
    concurrency: Positive = 8
    actors: Positive = 1
    timeout: Annotated[float, Field(gt=0, le=3600)] = 120.0
    retries: Count = 6
    asks: Positive = 6
    price: tuple[Weight, Weight] = Field(default=(0.0, 0.0), strict=False)


class PromptSettings(Section):
    """Asymmetric orthogonal prompting (AOP, paper section 3.3).

    endpoint: who writes the captions, in ``language``, from ``pairs`` random pairs of each effect;
    without one the bank's captions and descriptions are taken. triggers: random words; or of many
    random words an effect the one that is most orthogonal to the others, as the text encoder sees
    it; or none.
    """

    endpoint: EndpointSettings | None = None
    pairs: Annotated[int, Field(ge=1, le=8)] = 2
    language: Literal["en", "any"] = "en"
    triggers: Literal["random", "orthogonal", "none"] = "random"
    trigger_length: Annotated[int, Field(ge=4, le=16)] = 8
