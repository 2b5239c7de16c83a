//! What the store's tests share: a database in a folder of its own, and things to put into it.
