"""Alembic's place: ``env.py`` runs the revisions in ``versions`` on the connection that ``sql_migrate`` gives it."""
