"""The tree and the map from files to chunks, in one encrypted SQLite database: schema, queries, durability."""
