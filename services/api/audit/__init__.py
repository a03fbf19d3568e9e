"""The audit trail: who asked, when, of which model, with what verdict. Never any text."""
