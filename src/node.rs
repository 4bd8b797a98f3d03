//! Opens every floor in order and closes them in reverse.
