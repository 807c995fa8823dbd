"""The text encoder's processor, the same with torchvision and without it.

transformers' ``Qwen2VLProcessor`` wants a video processor, which needs torchvision, and with it
resizes pictures in another way. Editing needs no video: the same class runs here with a PIL image
processor alone, so that a folder without a video processor loads and an encoding does not depend
on what else is installed.
"""

from pathlib import Path

from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class ImageTextProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """``Qwen2VLProcessor`` for images and text only; the same tokens and patches."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil,
        tokenizer: Qwen2Tokenizer,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def load_processor(folder: Path) -> ImageTextProcessor:
    """The processor in ``folder`` (a pipeline's ``processor/``)."""
    return ImageTextProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder), Qwen2Tokenizer.from_pretrained(folder)
    )
