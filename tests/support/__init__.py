"""Code that several directories of tests share: no tests, no fixtures."""
