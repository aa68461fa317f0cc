"""Makes every change to the host (links, addresses, routes, rules, sysctls): host-service. It sees no packet and no key."""
