"""One file for each revision of ``sql_schema.REVISIONS``; a released one is never changed."""
