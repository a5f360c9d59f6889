"""The sections of the report page, one subject each."""
