"""Multi-turn episodes with tools and real feedback: ``load_environment(name)`` and ``run_episodes(...)``.

base.py             the contract, the table of built-in environments, names to environments
contract.py         what an environment may say, checked
stage.py            environments at work beside an engine, with deadlines
episode.py          the tokens of one episode: appended, never rewritten
driver.py           many episodes on one engine, each at its own pace
text.py             the same without tokens: a policy of text plays, experts and others
tools.py            tools: declared, called strictly, wrong calls answered with the reason
calculator.py, python_sandbox.py, search.py, business.py     the built-in ones, each with rows and an expert
"""
