"""What Alembic runs around the versions: on the connection, and in the transaction, that it was handed."""

from alembic import context

# SQLite too takes its tables back with the transaction, once that was begun in words.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
