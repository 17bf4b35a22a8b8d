"""`python -m almanac [YYYY-MM-DD]`: the moon on a day, today by default."""

import sys
from datetime import date

from almanac import age_days, phase

day = date.fromisoformat(sys.argv[1]) if len(sys.argv) > 1 else date.today()
print(f"{day}: {phase(day)}, {age_days(day):.1f} days old")
