// The alerts, recording rules and dashboards of examples as a monitoring mixin.
//
// All of it is in prometheusAlerts, and prometheusRules is empty: alerts use what the rules before them in their group
// recorded in the same evaluation, so records and alerts have to stay in one group.
local rules = {
  targets: importstr '../examples/rules/targets.yml',
  prober: importstr '../examples/rules/prober.yml',
  slo: importstr '../examples/rules/slo.yml',
  watch: importstr '../examples/rules/watch.yml',
  hold: importstr '../examples/rules/hold.yml',
  flows: importstr '../examples/rules/flows.yml',
  vantage: importstr '../examples/rules/vantage.yml',
};

{
  _config+:: {
    // The files of examples/rules to include. Leave slo out if you have no objectives, and add vantage if you have
    // several vantage points.
    shakerRules: ['targets', 'prober', 'slo', 'watch', 'hold', 'flows'],
    // Severities of your own, such as { page: 'critical', ticket: 'warning' }.
    shakerSeverities: {},
  },

  local severities = $._config.shakerSeverities,
  local known = ['shakerRules', 'shakerSeverities'],
  // Other mixins may have keys of their own in the same _config.
  local unknown = [
    key
    for key in std.objectFields($._config)
    if std.startsWith(key, 'shaker') && !std.member(known, key)
  ],
  local unknownSeverities = [name for name in std.objectFields(severities) if name != 'page' && name != 'ticket'],
  local invalidSeverities = [
    name
    for name in std.objectFields(severities)
    if !std.isString(severities[name]) || severities[name] == ''
  ],
  local withSeverity(rule) =
    if std.objectHas(rule, 'alert')
    then rule { labels+: { severity: std.get(severities, super.severity, super.severity) } }
    else rule,
  local groups(name) =
    assert std.isString(name) && std.objectHas(rules, name) :
           'shakerRules has %s, want some of %s' % [name, std.join(', ', std.objectFields(rules))];
    std.parseYaml(rules[name]).groups,

  prometheusAlerts+:: {
    assert unknown == [] : '_config has %s, want %s' % [std.join(', ', unknown), std.join(' and ', known)],
    assert std.isArray($._config.shakerRules) :
           "shakerRules is %s, want an array, such as ['targets', 'prober']" % std.toString($._config.shakerRules),
    assert std.length(std.set($._config.shakerRules, std.toString)) == std.length($._config.shakerRules) :
           'shakerRules is %s, want each file once' % std.toString($._config.shakerRules),
    assert std.isObject(severities) :
           "shakerSeverities is %s, want an object, such as { page: 'critical' }" % std.toString(severities),
    assert unknownSeverities == [] :
           'shakerSeverities has %s, want page and ticket' % std.join(', ', unknownSeverities),
    assert invalidSeverities == [] :
           'shakerSeverities.%s is %s, want a string' %
           [invalidSeverities[0], std.manifestJsonMinified(severities[invalidSeverities[0]])],
    groups+: [
      group { rules: std.map(withSeverity, super.rules) }
      for name in $._config.shakerRules
      for group in groups(name)
    ],
  },

  prometheusRules+:: {},

  grafanaDashboards+:: {
    'shaker-fleet.json': import '../examples/grafana/fleet.json',
    'shaker-target.json': import '../examples/grafana/target.json',
    'shaker-mesh.json': import '../examples/grafana/mesh.json',
  },
}
