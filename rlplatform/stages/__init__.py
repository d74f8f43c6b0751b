"""The staged recipe's rules as pure functions of rows: filters, selections, fusion data. No Ray, no engine."""
