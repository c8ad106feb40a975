//! Runs a template: statements.

use super::ast::{CallBlock, Expr, FilterBlock, Function, Load, Loads, Name, SetBlock};
use super::ast::{Stmt, StmtKind, Target, With};
use super::iterate;
use super::limits::{MAX_TEXT_BYTES, Meter, Outcome, raised, type_error, value_error};
use super::loops::LoopState;
use super::printing::write_str;
use super::scope::Root;
use super::value::{Str, Undefined, Val};

/// What a rendering gives.
pub(super) struct Written {
    pub(super) text: String,
    /// Where generation blocks begin, in bytes, and how many characters they write.
    pub(super) generated: Vec<(usize, usize)>,
}

/// One rendering.
pub(super) struct Renderer<'t, 'm> {
    pub(super) meter: &'m Meter,
    /// The variables that the template is given.
    pub(super) given: Vec<(&'t str, Val<'t>)>,
    /// The day and time of `strftime_now`.
    pub(super) now: Option<&'t super::dates::Moment>,
    pub(super) frames: Vec<Frame<'t>>,
    pub(super) frame: usize,
    outputs: Vec<String>,
    generated: Vec<(usize, usize)>,
    pub(super) namespaces: Vec<Vec<(Str<'t>, Val<'t>)>>,
    pub(super) cyclers: Vec<(Vec<Val<'t>>, usize)>,
    pub(super) joiners: Vec<(Val<'t>, bool)>,
    pub(super) loops: Vec<LoopState<'t>>,
    pub(super) macros: Vec<MacroValue<'t>>,
}

/// The variables of a function that runs, or ran and is held by a macro.
pub(super) struct Frame<'t> {
    pub(super) variables: Vec<Option<Val<'t>>>,
    pub(super) parent: usize,
}

/// A macro with the function in which it was defined.
#[derive(Clone, Copy)]
pub(super) struct MacroValue<'t> {
    pub(super) function: &'t Function,
    pub(super) parent: usize,
}

/// How a statement ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'t, 'm> Renderer<'t, 'm> {
    pub(super) fn new(
        given: Vec<(&'t str, Val<'t>)>,
        now: Option<&'t super::dates::Moment>,
        meter: &'m Meter,
    ) -> Self {
        Self {
            meter,
            given,
            now,
            frames: Vec::new(),
            frame: 0,
            outputs: vec![String::new()],
            generated: Vec::new(),
            namespaces: Vec::new(),
            cyclers: Vec::new(),
            joiners: Vec::new(),
            loops: Vec::new(),
            macros: Vec::new(),
        }
    }

    /// Runs the whole template.
    pub(super) fn run(mut self, root: &'t Root) -> Outcome<Written> {
        self.frames.push(Frame { variables: vec![None; root.slots], parent: 0 });
        self.load(&root.loads);
        self.stmts(&root.body)?;
        let text = self.outputs.pop().expect("the first output stays");
        Ok(Written { text, generated: self.generated })
    }

    /// What a scope does when it is entered.
    pub(super) fn load(&mut self, loads: &'t Loads) {
        for load in loads {
            match load {
                Load::Given(slot, name) => {
                    let value = self.given(name);
                    self.frames[self.frame].variables[*slot] = value;
                }
                Load::Outer(slot, place) => {
                    let frame = self.frame_above(place.up);
                    let value = self.frames[frame].variables[place.slot].clone();
                    self.frames[self.frame].variables[*slot] = value;
                }
                Load::Missing(slot) => self.frames[self.frame].variables[*slot] = None,
            }
        }
    }

    fn given(&self, name: &str) -> Option<Val<'t>> {
        let given = self.given.iter().find(|(other, _)| *other == name);
        given.map(|(_, value)| value.clone()).or_else(|| super::calls::global(name).map(Val::Function))
    }

    pub(super) fn frame_above(&self, up: usize) -> usize {
        (0..up).fold(self.frame, |frame, _| self.frames[frame].parent)
    }

    pub(super) fn variable(&self, name: &'t Name) -> Val<'t> {
        let frame = self.frame_above(name.place.up);
        let value = self.frames[frame].variables[name.place.slot].clone();
        value.unwrap_or(Val::Undefined(Undefined::Name(&name.name)))
    }

    pub(super) fn set(&mut self, name: &Name, value: Val<'t>) {
        let frame = self.frame_above(name.place.up);
        self.frames[frame].variables[name.place.slot] = Some(value);
    }

    /// Runs `work` in a new function. Its variables are kept where a macro may hold them.
    pub(super) fn in_function<T>(
        &mut self,
        parent: usize,
        slots: usize,
        work: impl FnOnce(&mut Self) -> Outcome<T>,
    ) -> Outcome<T> {
        self.meter.enter()?;
        self.meter.steps(slots)?;
        let (before, macros) = (self.frame, self.macros.len());
        self.frames.push(Frame { variables: vec![None; slots], parent });
        self.frame = self.frames.len() - 1;
        let result = work(self);
        if self.macros.len() == macros && self.frame == self.frames.len() - 1 {
            self.frames.pop();
        }
        self.frame = before;
        self.meter.leave();
        result
    }

    pub(super) fn assign(&mut self, target: &'t Target, value: Val<'t>) -> Outcome<()> {
        match target {
            Target::Name(name) => {
                self.set(name, value);
                Ok(())
            }
            Target::Attribute(name, attribute) => {
                let Val::Namespace(namespace) = self.variable(name) else {
                    return raised("cannot assign attribute on non-namespace object");
                };
                self.set_in_namespace(namespace, Str::Borrowed(attribute), value)
            }
            Target::Tuple(targets) => {
                let values = match iterate::items(&value) {
                    Ok(items) => items.rest(self.meter)?,
                    Err(_) => {
                        return type_error(format!(
                            "cannot unpack non-iterable {} object",
                            value.type_name()
                        ));
                    }
                };
                if values.len() != targets.len() {
                    let (expected, found) = (targets.len(), values.len());
                    return value_error(format!("expected {expected} values to unpack, found {found}"));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value))
            }
        }
    }

    /// Whether the targets that are attributes are those of namespaces; Jinja2 looks before it computes the value.
    fn check_namespaces(&self, target: &'t Target) -> Outcome<()> {
        match target {
            Target::Name(_) => Ok(()),
            Target::Attribute(name, _) if matches!(self.variable(name), Val::Namespace(_)) => Ok(()),
            Target::Attribute(..) => raised("cannot assign attribute on non-namespace object"),
            Target::Tuple(targets) => targets.iter().try_for_each(|target| self.check_namespaces(target)),
        }
    }

    fn output(&mut self) -> &mut String {
        self.outputs.last_mut().expect("the first output stays")
    }

    fn write(&mut self, text: &str) -> Outcome<()> {
        let length = self.output().len() + text.len();
        self.meter.steps(1 + text.len() / 64)?;
        if length > MAX_TEXT_BYTES {
            self.meter.text(length)?;
        }
        self.output().push_str(text);
        Ok(())
    }

    /// What `work` writes, instead of writing it.
    pub(super) fn captured<T>(&mut self, work: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<(String, T)> {
        self.outputs.push(String::new());
        let result = work(self);
        let text = self.outputs.pop().expect("pushed above");
        result.map(|result| (text, result))
    }

    pub(super) fn stmts(&mut self, stmts: &'t [Stmt]) -> Outcome<Flow> {
        for stmt in stmts {
            let flow = self.stmt(stmt).map_err(|failure| failure.at(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn stmt(&mut self, stmt: &'t Stmt) -> Outcome<Flow> {
        match &stmt.kind {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Print(expr) => {
                let value = self.eval(expr)?;
                match value.as_str() {
                    Some(text) => self.write(text)?,
                    None => write_str(
                        self.outputs.last_mut().expect("the first output stays"),
                        &value,
                        self.meter,
                    )?,
                }
            }
            StmtKind::Set(target, value) => {
                self.check_namespaces(target)?;
                let value = self.eval(value)?;
                self.assign(target, value)?;
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            StmtKind::Macro(name, function) => {
                let value = self.macro_value(function);
                self.set(name, value);
            }
            StmtKind::Generation(function) => self.generation(function)?,
            StmtKind::Call(block) => self.call_block(block)?,
            _ => {
                self.meter.enter()?;
                let flow = self.nested(&stmt.kind);
                self.meter.leave();
                return flow;
            }
        }
        Ok(Flow::Next)
    }

    /// Statements with statements inside.
    fn nested(&mut self, kind: &'t StmtKind) -> Outcome<Flow> {
        match kind {
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test)?.is_true() {
                        return self.stmts(body);
                    }
                }
                self.stmts(otherwise)
            }
            StmtKind::For(node) => {
                let items = self.eval(&node.items)?;
                if node.recursive {
                    let text = self.recursive_loop(node, &items, 0, self.frame)?;
                    self.write(&text)?;
                    return Ok(Flow::Next);
                }
                self.for_loop(node, &items, 0, self.frame)
            }
            StmtKind::SetBlock(block) => self.set_block(block),
            StmtKind::With(with) => self.with(with),
            StmtKind::FilterBlock(block) => self.filter_block(block),
            _ => unreachable!("`stmt` runs the others"),
        }
    }

    fn set_block(&mut self, block: &'t SetBlock) -> Outcome<Flow> {
        self.load(&block.loads);
        let (text, flow) = self.captured(|renderer| renderer.stmts(&block.body))?;
        if flow != Flow::Next {
            return Ok(flow);
        }
        let value = self.filtered(block.filter.as_ref(), Val::text(text))?;
        self.assign(&block.target, value)?;
        Ok(Flow::Next)
    }

    fn filter_block(&mut self, block: &'t FilterBlock) -> Outcome<Flow> {
        self.load(&block.loads);
        let (text, flow) = self.captured(|renderer| renderer.stmts(&block.body))?;
        if flow != Flow::Next {
            return Ok(flow);
        }
        let value = self.filtered(Some(&block.filter), Val::text(text))?;
        write_str(self.outputs.last_mut().expect("the first output stays"), &value, self.meter)?;
        Ok(Flow::Next)
    }

    fn filtered(&mut self, filter: Option<&'t Expr>, value: Val<'t>) -> Outcome<Val<'t>> {
        match filter {
            Some(Expr::Filter(applied)) => {
                let value = self.filtered(applied.value.as_ref(), value)?;
                let arguments = self.arguments(&applied.arguments)?;
                self.filter(&applied.name, value, arguments)
            }
            _ => Ok(value),
        }
    }

    fn with(&mut self, with: &'t With) -> Outcome<Flow> {
        self.load(&with.loads);
        for (target, value) in &with.assignments {
            let value = self.eval(value)?;
            self.assign(target, value)?;
        }
        self.stmts(&with.body)
    }

    fn generation(&mut self, function: &'t Function) -> Outcome<()> {
        let (text, ()) = self.in_function(self.frame, function.slots, |renderer| {
            renderer.load(&function.loads);
            if let Some(slot) = function.caller {
                renderer.frames[renderer.frame].variables[slot] =
                    Some(Val::Undefined(Undefined::Hint("No caller defined")));
            }
            renderer.captured(|renderer| renderer.stmts(&function.body).map(|_| ()))
        })?;
        // As in transformers: from what is written to the end, not to a variable.
        self.generated.push((self.outputs[0].len(), text.chars().count()));
        self.write(&text)
    }

    /// The text of a macro or of a caller; its parameters are set by `prepare`.
    pub(super) fn call_function(
        &mut self,
        called: MacroValue<'t>,
        prepare: impl FnOnce(&mut Self) -> Outcome<()>,
    ) -> Outcome<Val<'t>> {
        let function = called.function;
        let (text, ()) = self.in_function(called.parent, function.slots, |renderer| {
            renderer.load(&function.loads);
            prepare(renderer)?;
            renderer.captured(|renderer| renderer.stmts(&function.body).map(|_| ()))
        })?;
        Ok(Val::text(text))
    }

    fn call_block(&mut self, block: &'t CallBlock) -> Outcome<()> {
        let CallBlock { call, body } = block;
        let Expr::Call(call) = call else { unreachable!("checked by the parser") };
        let caller = self.macro_value(body);
        let function = self.eval(&call.function)?;
        let mut arguments = self.arguments(&call.arguments)?;
        arguments.named.push((Str::Borrowed("caller"), caller));
        let value = self.call(&function, arguments)?;
        write_str(self.outputs.last_mut().expect("the first output stays"), &value, self.meter)
    }
}
