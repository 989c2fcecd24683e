"""Small export files of other programs, for tests."""

from typing import Any


def gpt_node(parent: str | None, role: str = "", text: Any = "", **message: Any) -> dict[str, Any]:
    if not role:
        return {"message": None, "parent": parent, "children": []}
    parts = text if isinstance(text, list) else [text]
    content = {"content_type": message.pop("content_type", "text"), "parts": parts}
    return {
        "message": {"author": {"role": role}, "content": content, "create_time": 1.7e9, **message},
        "parent": parent,
    }


def chatgpt(id: str = "chat-1", **nodes: Any) -> dict[str, Any]:
    """A question, an answer in two pieces around a tool, and another version of the question."""
    mapping = {
        "root": gpt_node(None),
        "system": gpt_node("root", "system", "Hidden."),
        "q": gpt_node("system", "user", "Where is Uppsala?"),
        "a": gpt_node("q", "assistant", "Let me look.", metadata={"model_slug": "gpt-4o"}),
        "call": gpt_node("a", "assistant", "search()", recipient="browser"),
        "tool": gpt_node("call", "tool", "Found."),
        "b": gpt_node("tool", "assistant", "In **Sweden**."),
        "q2": gpt_node("system", "user", [{"content_type": "image_asset_pointer"}, "And this?"]),
        **nodes,
    }
    return {
        "title": "Geography <b>",
        "conversation_id": id,
        "create_time": 1.7e9,
        "update_time": 1.7e9 + 60,
        "current_node": "b",
        "mapping": mapping,
    }


def open_webui(id: str = "web-1") -> dict[str, Any]:
    answer = (
        '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n> Hm.\n</details>\nIn Sweden.'
    )
    messages = {
        "1": {
            "id": "1",
            "parentId": None,
            "childrenIds": ["2", "3"],
            "role": "user",
            "content": "Where?",
            "timestamp": 1.7e9,
        },
        "2": {
            "id": "2",
            "parentId": "1",
            "childrenIds": [],
            "role": "assistant",
            "content": answer,
            "model": "llama3.2:1b",
        },
        "3": {"id": "3", "parentId": "1", "childrenIds": [], "role": "assistant", "content": "I do not know."},
    }
    chat = {"title": "Place", "models": ["llama3.2:1b"], "history": {"messages": messages, "currentId": "2"}}
    return {
        "id": id,
        "user_id": "u",
        "title": "Place",
        "chat": chat,
        "created_at": 1.7e9,
        "updated_at": 1.7e9,
        "archived": True,
    }
