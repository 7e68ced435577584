"""What stands between an agent's call and its server: decisions, approvals, the record."""
