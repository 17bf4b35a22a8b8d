"""A pocket almanac: what the moon looks like on a day."""

from almanac.moon import age_days, phase

__all__ = ["age_days", "phase"]
