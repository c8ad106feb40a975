//! Runs a template: loops.

use super::ast::{For, LoopFilter};
use super::iterate::{self, Items};
use super::limits::{Outcome, refused, type_error};
use super::render::{Flow, Renderer};
use super::value::{Undefined, Val};

/// Steps that the state of a loop counts for, because it is kept to the end.
const LOOP_STEPS: usize = 16;

/// The variable `loop`.
pub(super) struct LoopState<'t> {
    node: &'t For,
    /// What is left, and the `if` that it has to pass.
    items: Items<'t>,
    filter: Option<&'t LoopFilter>,
    length: Option<usize>,
    /// Which item the body sees, from 1; 0 before the first.
    pub(super) index: usize,
    pub(super) depth: usize,
    /// The item after the current one, where it was looked at.
    ahead: Option<Val<'t>>,
    before: Option<Val<'t>>,
    current: Option<Val<'t>>,
    pub(super) changed: Option<Val<'t>>,
    /// The function around the loop.
    parent: usize,
    /// Whether the loop goes on.
    active: bool,
}

impl<'t> Renderer<'t, '_> {
    /// A loop that can be called: it is a function, and gives its text.
    pub(super) fn recursive_loop(
        &mut self,
        node: &'t For,
        items: &Val<'t>,
        depth: usize,
        parent: usize,
    ) -> Outcome<String> {
        let (text, _) = self.in_function(parent, node.slots, |renderer| {
            renderer.captured(|renderer| renderer.for_loop(node, items, depth, parent))
        })?;
        Ok(text)
    }

    pub(super) fn for_loop(
        &mut self,
        node: &'t For,
        items: &Val<'t>,
        depth: usize,
        parent: usize,
    ) -> Outcome<Flow> {
        let mut items = iterate::items(items)?;
        let state = match node.loop_slot {
            Some(slot) => {
                self.meter.steps(LOOP_STEPS)?;
                let length = if node.filter.is_none() { items.length() } else { None };
                let items = std::mem::replace(&mut items, Items::none());
                self.loops.push(LoopState {
                    node,
                    items,
                    filter: node.filter.as_ref(),
                    length,
                    index: 0,
                    depth,
                    ahead: None,
                    before: None,
                    current: None,
                    changed: None,
                    parent,
                    active: true,
                });
                let state = self.loops.len() - 1;
                self.frames[self.frame].variables[slot] = Some(Val::Loop(state));
                Some(state)
            }
            None => None,
        };
        let mut completed = false;
        loop {
            let item = match state {
                Some(state) => self.advance(state)?,
                None => self.next_item(node.filter.as_ref(), &mut items)?,
            };
            let Some(item) = item else { break };
            self.assign(&node.target, item)?;
            self.load(&node.loads);
            match self.stmts(&node.body)? {
                Flow::Break => break,
                Flow::Continue => continue,
                // Jinja2 runs the `else` where no turn came to its end.
                Flow::Next => completed = true,
            }
        }
        if let Some(state) = state {
            self.loops[state].items = Items::none();
            self.loops[state].active = false;
        }
        if completed || node.otherwise.is_empty() {
            return Ok(Flow::Next);
        }
        self.load(&node.otherwise_loads);
        self.stmts(&node.otherwise)
    }

    /// The next item that the loop's `if` lets through.
    fn next_item(
        &mut self,
        filter: Option<&'t LoopFilter>,
        items: &mut Items<'t>,
    ) -> Outcome<Option<Val<'t>>> {
        while let Some(item) = items.next(self.meter)? {
            let Some(filter) = filter else { return Ok(Some(item)) };
            self.load(&filter.loads);
            self.assign(&filter.target, item.clone())?;
            if self.eval(&filter.test)?.is_true() {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    fn next_of_state(&mut self, state: usize) -> Outcome<Option<Val<'t>>> {
        let filter = self.loops[state].filter;
        let mut items = std::mem::replace(&mut self.loops[state].items, Items::none());
        let item = self.next_item(filter, &mut items);
        self.loops[state].items = items;
        item
    }

    fn advance(&mut self, state: usize) -> Outcome<Option<Val<'t>>> {
        let next = match self.loops[state].ahead.take() {
            Some(ahead) => Some(ahead),
            None => self.next_of_state(state)?,
        };
        let found = &mut self.loops[state];
        if next.is_some() {
            found.index += 1;
            found.before = found.current.take();
            found.current = next.clone();
        }
        Ok(next)
    }

    /// The item after the current one.
    fn peek(&mut self, state: usize) -> Outcome<Option<Val<'t>>> {
        if self.loops[state].ahead.is_none() {
            self.loops[state].ahead = self.next_of_state(state)?;
        }
        Ok(self.loops[state].ahead.clone())
    }

    fn loop_length(&mut self, state: usize) -> Outcome<usize> {
        if let Some(length) = self.loops[state].length {
            return Ok(length);
        }
        let mut rest = Vec::new();
        while let Some(item) = self.next_of_state(state)? {
            rest.push(Ok(item));
        }
        let found = &mut self.loops[state];
        let length = rest.len() + found.index + usize::from(found.ahead.is_some());
        found.length = Some(length);
        self.loops[state].items = iterate::items(&Val::generator("generator", rest))?;
        self.loops[state].filter = None;
        Ok(length)
    }

    /// An attribute of the variable `loop`; `None` if there is no such attribute.
    pub(super) fn loop_attribute(&mut self, state: usize, name: &str) -> Outcome<Option<Val<'t>>> {
        let int = |value: usize| Val::Int(i128::try_from(value).expect("a length fits 128 bits"));
        let index = self.loops[state].index;
        Ok(Some(match name {
            "index" => int(index),
            "index0" => Val::Int(i128::try_from(index).expect("an index fits 128 bits") - 1),
            "first" => Val::Bool(index == 1),
            "last" => Val::Bool(self.peek(state)?.is_none()),
            "length" => int(self.loop_length(state)?),
            "revindex" => int(self.loop_length(state)? + 1 - index),
            "revindex0" => int(self.loop_length(state)? - index),
            "depth" => int(self.loops[state].depth + 1),
            "depth0" => int(self.loops[state].depth),
            "previtem" => match &self.loops[state].before {
                Some(item) if index > 1 => item.clone(),
                _ => Val::Undefined(Undefined::Hint("there is no previous item")),
            },
            "nextitem" => match self.peek(state)? {
                Some(item) => item,
                None => Val::Undefined(Undefined::Hint("there is no next item")),
            },
            _ => return Ok(None),
        }))
    }

    /// `loop(items)` in a recursive loop.
    pub(super) fn call_loop(&mut self, state: usize, items: &Val<'t>) -> Outcome<Val<'t>> {
        let LoopState { node, depth, parent, active, .. } = self.loops[state];
        if !active {
            return refused("calling a `loop` after its end");
        }
        if !node.recursive {
            return type_error("the loop must have the 'recursive' marker to be called recursively");
        }
        Ok(Val::text(self.recursive_loop(node, items, depth + 1, parent)?))
    }
}
