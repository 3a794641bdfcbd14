"""What objectives and constraints may name: prompt sets, attacks and judges of the sweep's experiment."""

from __future__ import annotations

from collections.abc import Sequence

from dsprobe.config import PromptsConfig, RunConfig
from dsprobe.errors import ConfigError, unknown_name
from dsprobe.judges import beside_generation
from dsprobe.judges import decides as question
from dsprobe.judges.base import Decides


def check_rows(where: str, prompts: Sequence[str] | None, attacks: Sequence[str] | None, experiment: RunConfig) -> None:
    """See that prompt sets and attacks exist, and that every attack runs on one of the sets.

    Args:
        where: What names them, for messages.
        prompts: Prompt-set labels; `None` is all.
        attacks: Attack labels; `None` is all.
        experiment: The sweep's experiment.

    Raises:
        ConfigError: They do not.
    """
    sets: dict[str, PromptsConfig] = {prompt_set.key: prompt_set for prompt_set in experiment.prompts}
    keys = [attack.key for attack in experiment.attacks]
    for name in prompts or ():
        if name not in sets:
            raise unknown_name(f"prompt set of {where}", name, sets)
    for name in attacks or ():
        if name not in keys:
            raise unknown_name(f"attack of {where}", name, keys)
        chosen = [sets[key] for key in prompts or sets]
        if not any(prompt_set.attacks is None or name in prompt_set.attacks for prompt_set in chosen):
            raise ConfigError(
                f"{where}: attack `{name}` runs on none of its prompt sets: {', '.join(prompts or sets)}."
            )
    if prompts == () or attacks == ():
        raise ConfigError(f"{where}: an empty list selects no row; leave it out for all.")


def check_judge(where: str, judge: str | None, decides: Sequence[Decides], experiment: RunConfig) -> None:
    """See that a judge is named, known, and decides the right question.

    Args:
        where: What names it, for messages.
        judge: Its key.
        decides: Questions that will do.
        experiment: The sweep's experiment.

    Raises:
        ConfigError: It is not.
    """
    known = {spec.key: question(spec) for spec in beside_generation(experiment.judges)}
    fitting = [key for key, what in known.items() if what in decides]
    needed = " or ".join(decides)
    hint = f"Allowed here: {', '.join(fitting)}." if fitting else f"`experiment.judges` has none that decides {needed}."
    if judge not in known and judge in [spec.key for spec in experiment.judges]:
        raise ConfigError(
            f"{where}: judge `{judge}` needs a model or a network of its own and judges after generation only, so no "
            f"trial can wait for it. {hint}"
        )
    if judge is None or not fitting:
        raise ConfigError(f"{where} needs a judge that decides {needed}. {hint}")
    if judge not in known:
        raise unknown_name(f"judge of {where}", judge, known)
    if judge not in fitting:
        raise ConfigError(f"{where}: judge `{judge}` decides {known[judge]}, not {needed}. {hint}")
