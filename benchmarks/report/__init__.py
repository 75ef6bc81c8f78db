"""Records -> frames -> statistics -> plots -> sections -> pages. Needs no torch and no tasks."""
