"""The demonstration: a tool and an agent do real work on real files while their worker is killed twice.

`app` names the tools and the agent, `worker` runs them in a process of its own, `show` starts it, kills it with
SIGKILL at two awkward moments, answers a question, and checks afterwards that nothing was lost or done twice.
"""
