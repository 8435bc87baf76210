"""Learning rates over a run, in optimizer updates and closed form."""

from opsin.scheduler.scheduler import Scheduler, create_scheduler
from opsin.scheduler.shapes import list_schedules

__all__ = ["Scheduler", "create_scheduler", "list_schedules"]
