// The panels of the dashboard as Grafana would ask for them.

import { readFileSync } from "node:fs";

const FILE = new URL("../../../deploy/grafana/ringcable.json", import.meta.url);

export const dashboardText = () => readFileSync(FILE, "utf8");

/** Puts values in the places of Grafana's variables. */
export function substituted(expr, rateInterval) {
  const values = { $__rate_interval: rateInterval, $instance: ".*" };
  const done = Object.entries(values).reduce((text, [name, value]) => text.replaceAll(name, value), expr);
  if (done.includes("$")) throw new Error(`an unknown variable in ${expr}`);
  return done;
}

/** `[{row, title, type, unit, targets: [{expr, legendFormat}]}]` in the order of the dashboard. */
export function panels(rateInterval = "10s") {
  const found = [];
  let row;
  for (const panel of JSON.parse(dashboardText()).panels) {
    if (panel.type === "row") {
      row = panel.title;
    } else {
      const { title, type, gridPos, fieldConfig: { defaults: { unit, custom } } } = panel;
      const targets = panel.targets.map(({ expr, legendFormat }) => ({ expr: substituted(expr, rateInterval), legendFormat }));
      found.push({ row, title, type, unit, gridPos, stacked: custom?.stacking.mode === "normal", targets });
    }
  }
  return found;
}

/** Names of metrics in an expression. */
export const metricsIn = (expr) => expr.match(/\b(?:anycable_go|ringcable)_[a-z_]+/g) ?? [];

/** What a series is called in the legend. */
export function legend(format, { __name__: name, ...labels }) {
  if (format === "__auto") return name ?? Object.values(labels).join(" ");
  return format.replaceAll(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? "");
}
