"""What people see: tables, listings and the machine-readable report."""
