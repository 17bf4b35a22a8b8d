"""The moon's age and phase, to about half a day: days since a known new moon, modulo the synodic month."""

from datetime import date

NEW_MOON = date(2000, 1, 6)
SYNODIC_MONTH_DAYS = 29.530588

PHASES = (
    "new moon",
    "waxing crescent",
    "first quarter",
    "waxing gibbous",
    "full moon",
    "waning gibbous",
    "last quarter",
    "waning crescent",
)


def age_days(day: date) -> float:
    """Days since the last new moon, from 0 to 29.53."""
    return (day - NEW_MOON).days % SYNODIC_MONTH_DAYS


def phase(day: date) -> str:
    """The name of the moon's phase on *day*."""
    eighth = round(age_days(day) / SYNODIC_MONTH_DAYS * len(PHASES)) % len(PHASES)
    return PHASES[eighth]
