//! What the examples share: labels of a made-up teacher.

pub(crate) mod made_up;
