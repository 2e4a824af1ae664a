//! What clients write of migrations, right and wrong.
