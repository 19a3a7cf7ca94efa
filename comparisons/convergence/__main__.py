from comparisons.convergence.study import main

main()
