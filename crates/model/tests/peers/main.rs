//! Equal to transformers and PEFT, by golden files that `tests/peers/make_golden.py` wrote with the real ones.

mod adapters;
mod families;
mod generate;
mod golden;
mod heads;
mod kinds;
mod positions;
mod published;
