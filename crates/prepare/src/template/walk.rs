//! Walks through the tree of a template.

use super::ast::{Applied, Arguments, Call, Expr, Function, Stmt, StmtKind, Target};

/// Whether statements read a name that they do not assign before, however deep inside.
pub(super) fn reads(body: &[Stmt], name: &str) -> bool {
    let mut search = Search { name, assigned: false, found: false };
    body.iter().for_each(|stmt| search.stmt(stmt));
    search.found
}

struct Search<'a> {
    name: &'a str,
    assigned: bool,
    found: bool,
}

impl Search<'_> {
    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Name(name) => self.found |= !self.assigned && *name.name == *self.name,
            other => children(other, &mut |child| self.expr(child)),
        }
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.assigned |= *name.name == *self.name,
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
            Target::Attribute(..) => {}
        }
    }

    fn function(&mut self, function: &Function) {
        self.assigned |= function.parameters.iter().any(|parameter| *parameter.name == *self.name);
        function.defaults.iter().for_each(|default| self.expr(default));
        function.body.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Data(_) | StmtKind::Break | StmtKind::Continue => {}
            StmtKind::Print(expr) => self.expr(expr),
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    self.expr(test);
                    body.iter().for_each(|stmt| self.stmt(stmt));
                }
                otherwise.iter().for_each(|stmt| self.stmt(stmt));
            }
            StmtKind::For(node) => {
                self.target(&node.target);
                self.expr(&node.items);
                node.body.iter().chain(&node.otherwise).for_each(|stmt| self.stmt(stmt));
                node.filter.iter().for_each(|filter| self.expr(&filter.test));
            }
            StmtKind::Set(target, value) => {
                self.target(target);
                self.expr(value);
            }
            StmtKind::SetBlock(block) => {
                self.target(&block.target);
                block.filter.iter().for_each(|filter| self.expr(filter));
                block.body.iter().for_each(|stmt| self.stmt(stmt));
            }
            StmtKind::With(with) => {
                with.assignments.iter().for_each(|(target, _)| self.target(target));
                with.assignments.iter().for_each(|(_, value)| self.expr(value));
                with.body.iter().for_each(|stmt| self.stmt(stmt));
            }
            StmtKind::FilterBlock(block) => {
                block.body.iter().for_each(|stmt| self.stmt(stmt));
                self.expr(&block.filter);
            }
            StmtKind::Macro(_, function) | StmtKind::Generation(function) => self.function(function),
            StmtKind::Call(block) => {
                self.expr(&block.call);
                self.function(&block.body);
            }
        }
    }
}

/// Calls `visit` with each part of an expression.
pub(super) fn children(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    match expr {
        Expr::Const(_) | Expr::Name(_) => {}
        Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => items.iter().for_each(visit),
        Expr::Dict(entries) => {
            entries.iter().for_each(|(key, value)| [key, value].into_iter().for_each(&mut *visit))
        }
        Expr::Condition { test, yes, no } => [test, yes].into_iter().chain(no).for_each(|part| visit(part)),
        Expr::And(pair) | Expr::Or(pair) | Expr::Binary(_, pair) | Expr::Item(pair) => {
            [&pair.0, &pair.1].into_iter().for_each(visit);
        }
        Expr::Not(inner) | Expr::Negative(inner) | Expr::Positive(inner) | Expr::Attribute(inner, _) => {
            visit(inner)
        }
        Expr::Compare(left, operands) => {
            visit(left);
            operands.iter().for_each(|(_, operand)| visit(operand));
        }
        Expr::Slice(bounds) => bounds.iter().flatten().for_each(visit),
        Expr::Call(call) => {
            visit(&call.function);
            argument_parts(&call.arguments, visit);
        }
        Expr::Filter(applied) | Expr::Test(applied) => {
            applied.value.iter().for_each(&mut *visit);
            argument_parts(&applied.arguments, visit);
        }
    }
}

fn argument_parts(arguments: &Arguments, visit: &mut dyn FnMut(&Expr)) {
    let Arguments { positional, named, more_positional, more_named } = arguments;
    let named = named.iter().map(|(_, value)| value);
    positional.iter().chain(named).chain(more_positional).chain(more_named).for_each(visit);
}

pub(super) fn children_mut(expr: &mut Expr, visit: &mut dyn FnMut(&mut Expr)) {
    match expr {
        Expr::Const(_) | Expr::Name(_) => {}
        Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => items.iter_mut().for_each(visit),
        Expr::Dict(entries) => {
            entries.iter_mut().for_each(|(key, value)| [key, value].into_iter().for_each(&mut *visit));
        }
        Expr::Condition { test, yes, no } => [test, yes].into_iter().chain(no).for_each(|part| visit(part)),
        Expr::And(pair) | Expr::Or(pair) | Expr::Binary(_, pair) | Expr::Item(pair) => {
            let (left, right) = &mut **pair;
            [left, right].into_iter().for_each(visit);
        }
        Expr::Not(inner) | Expr::Negative(inner) | Expr::Positive(inner) | Expr::Attribute(inner, _) => {
            visit(inner)
        }
        Expr::Compare(left, operands) => {
            visit(left);
            operands.iter_mut().for_each(|(_, operand)| visit(operand));
        }
        Expr::Slice(bounds) => bounds.iter_mut().flatten().for_each(visit),
        Expr::Call(call) => {
            let Call { function, arguments } = &mut **call;
            visit(function);
            argument_parts_mut(arguments, visit);
        }
        Expr::Filter(applied) | Expr::Test(applied) => {
            let Applied { value, arguments, .. } = &mut **applied;
            value.iter_mut().for_each(&mut *visit);
            argument_parts_mut(arguments, visit);
        }
    }
}

fn argument_parts_mut(arguments: &mut Arguments, visit: &mut dyn FnMut(&mut Expr)) {
    let Arguments { positional, named, more_positional, more_named } = arguments;
    let named = named.iter_mut().map(|(_, value)| value);
    positional.iter_mut().chain(named).chain(more_positional).chain(more_named).for_each(visit);
}
